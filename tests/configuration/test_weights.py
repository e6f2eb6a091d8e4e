"""The keys of a model's input beside what its weights expect."""

from resnest_det.configuration.weights import check_input_matches


def test_input_that_does_not_fit_the_weights():
    mean, std = [123.68, 116.779, 103.939], [58.393, 57.12, 57.375]  # the published recipes'
    assert check_input_matches(mean, std, "RGB", "resnest://resnest50") == []
    bgr = check_input_matches(mean[::-1], [1.0, 1.0, 1.0], "BGR", "resnest50.pth")
    assert len(bgr) == 3
    assert "MODEL.PIXEL_MEAN" in bgr[0] and "123.675, 116.280, 103.530" in bgr[0]
    assert "MODEL.PIXEL_STD" in bgr[1] and "58.395" in bgr[1]
    assert "INPUT.FORMAT is BGR" in bgr[2]
    assert check_input_matches(mean[::-1], [1.0, 1.0, 1.0], "BGR", "") == []
    assert check_input_matches(mean[::-1], [1.0] * 3, "BGR", "detectron2://ImageNetPretrained/MSRA/R-50.pkl") == []
