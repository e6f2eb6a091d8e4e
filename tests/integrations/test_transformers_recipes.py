"""The recipes of configs/transformers: each builds, takes a step, is saved and loaded, and its results are evaluated here."""

import json
import re
from pathlib import Path

import pytest
import torch

pytestmark = [pytest.mark.extras, pytest.mark.filterwarnings("ignore:::transformers")]
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("scipy")

from torchvision.ops import FrozenBatchNorm2d  # noqa: E402

from resnest_det.commands import train_transformers  # noqa: E402
from resnest_det.data.catalog import dataset_names, get_dataset, register_coco, register_panoptic  # noqa: E402
from resnest_det.data.shapes import STUFF, THINGS, write_shapes  # noqa: E402
from resnest_det.errors import UserError  # noqa: E402
from resnest_det.integrations import transformers_data as data  # noqa: E402
from resnest_det.integrations import transformers_train as recipes  # noqa: E402
from resnest_det.integrations.transformers import load_backbone_weights  # noqa: E402

NARROW = dict(depths=[1, 1, 1, 1], bottleneck_channels=8, res2_out_channels=32, stem_width=8)
DETR = dict(d_model=32, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2, num_queries=9)
DETR |= dict(encoder_ffn_dim=32, decoder_ffn_dim=32)
FAST = dict(DETR, encoder_hidden_dim=32, encoder_in_channels=[64, 128, 256], decoder_in_channels=[32] * 3, num_denoising=4)
MASKS = dict(hidden_dim=32, feature_size=32, mask_feature_size=32, encoder_layers=1, decoder_layers=2, num_attention_heads=2)
MASKS |= dict(encoder_feedforward_dim=32, dim_feedforward=32, num_queries=9, train_num_points=64)
# What makes each recipe small enough for a test.
TINY = {
    "rt_detr_v2_resnest50": FAST,
    "rt_detr_v2_resnest14_shapes": FAST,
    "d_fine_resnest50": dict(FAST, head_dim=16, lqe_hidden_dim=8, max_num_bins=8),
    "detr_resnest50": DETR,
    "deformable_detr_resnest50": dict(DETR, d_model=64),  # its group norm needs several channels a group
    "mask2former_instance_resnest50": MASKS,
    "mask2former_panoptic_resnest50": MASKS,
    "mask2former_semantic_resnest50": MASKS,
    "upernet_resnest50": dict(hidden_size=16, auxiliary_in_channels=128, auxiliary_channels=16),
}
SIZES = {"RTDetrImageProcessor": {"height": 64, "width": 64}, "SegformerImageProcessor": {"height": 64, "width": 64}}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shapes"
    write_shapes(folder, {"train": 4})
    return folder


@pytest.fixture
def few(shapes, own_registry):
    """Names of a dataset with objects, and of a panoptic one."""
    files = f"{shapes}/annotations/instances_train.json", f"{shapes}/train"
    register_coco("few", *files)
    register_panoptic("few_panoptic", f"{shapes}/annotations/panoptic_train.json", f"{shapes}/panoptic_train", files[1], files[0])
    return {"detection": "few", "instance": "few", "panoptic": "few_panoptic", "semantic": "few_panoptic"}


def shrink(name: str, folder) -> None:
    """The recipe in `folder`, with a model and images small enough for a test."""
    source = recipes.find_recipe(name)
    config = json.loads((source / "config.json").read_text()) | TINY[name]
    config["backbone_config"] |= NARROW | ({"norm": "BN"} if config["backbone_config"]["norm"] == "SyncBN" else {})
    processor = json.loads((source / "preprocessor_config.json").read_text())
    processor["size"] = SIZES.get(processor["image_processor_type"], {"shortest_edge": 64, "longest_edge": 96})
    training = json.loads((source / "training.json").read_text())
    training |= dict(max_steps=1, per_device_train_batch_size=2, dataloader_num_workers=0, save_strategy="no", use_cpu=True)
    training |= dict(backbone_weights="", disable_tqdm=True)
    for file, content in (("config", config), ("preprocessor_config", processor), ("training", training)):
        (folder / f"{file}.json").write_text(json.dumps(content))


def test_all_recipes_are_tested():
    assert recipes.recipe_names() == sorted(TINY)


def test_the_pages_lines_name_recipes_and_datasets_that_there_are():
    page = (Path(__file__).parents[2] / "docs" / "transformers.md").read_text()
    assert set(re.findall(r"--recipe (\S+)", page)) <= set(recipes.recipe_names())
    named = re.findall(r"--(?:train|val) (\S+)", page)
    assert len(named) == 6 and set(named) <= set(dataset_names())


@pytest.mark.parametrize("name", sorted(TINY))
def test_a_recipe_is_what_transformers_writes_and_builds_at_full_size(name, tmp_path):
    folder = recipes.find_recipe(name)
    with torch.device("meta"):
        model = recipes.build(folder)
    backbone = next(module for module in model.modules() if type(module).__name__ == "ResNeStBackbone")
    assert sum(parameter.numel() for parameter in backbone.parameters()) > (1e5 if "shapes" in name else 2e7)
    recipes.read_training(folder)
    config = transformers.AutoConfig.from_pretrained(folder)
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    written.pop("transformers_version")
    kept = json.loads((folder / "config.json").read_text())
    # A newer version may add keys.
    assert {key: written[key] for key in kept if key != "backbone_config"} == {
        k: v for k, v in kept.items() if k != "backbone_config"
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TINY))
def test_a_recipe_is_trained_saved_loaded_and_evaluated(name, tmp_path, few):
    (tmp_path / "recipe").mkdir()
    shrink(name, tmp_path / "recipe")
    task = recipes.read_training(tmp_path / "recipe")["task"]
    out = tmp_path / "out"
    figures = recipes.train(str(tmp_path / "recipe"), few[task], few[task], str(out))
    assert set(figures) == {"detection": {"bbox"}, "instance": {"bbox", "segm"}}.get(
        task, {"panoptic_seg"} if task == "panoptic" else {"sem_seg"}
    )
    written = json.loads((out / "figures.json").read_text())
    assert set(written) == set(figures)

    config = transformers.AutoConfig.from_pretrained(out)
    model = getattr(transformers, config.architectures[0]).from_pretrained(out).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(out)
    dataset = get_dataset(few[task], keep_truth=True)
    assert list(config.id2label.values()) == data.label_names(dataset, task)
    again = data.evaluate_transformers(model, processor, dataset, task)
    for kind, values in figures.items():
        assert again[kind] == pytest.approx(values, nan_ok=True)
    with torch.no_grad():
        pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        first, second = model(pixels), getattr(transformers, config.architectures[0]).from_pretrained(out).eval()(pixels)
    assert torch.allclose(first[0], second[0], atol=1e-5)


@pytest.mark.parametrize("name", sorted(TINY))
def test_weights_reach_the_backbone_of_a_recipe(name, tmp_path):
    shrink(name, tmp_path)
    model = recipes.build(tmp_path)
    body = next(module for module in model.modules() if type(module).__name__ == "ResNeSt")
    state = {key: torch.full_like(value, 0.25) for key, value in body.state_dict().items()}
    torch.save(state, tmp_path / "backbone.pth")
    load_backbone_weights(model, str(tmp_path / "backbone.pth"))
    assert all((value == 0.25).all() for key, value in body.state_dict().items() if "num_batches" not in key)


def test_a_model_without_the_backbone_takes_no_weights():
    with pytest.raises(UserError, match="a Linear has no ResNeSt to load weights resnest://resnest50 into"):
        load_backbone_weights(torch.nn.Linear(1, 1), "resnest://resnest50")


@pytest.mark.parametrize(("name", "frozen"), [("detr_resnest50", True), ("rt_detr_v2_resnest14_shapes", False)])
def test_norms_are_as_the_recipe_wants(name, frozen, tmp_path):
    shrink(name, tmp_path)
    body = next(module for module in recipes.build(tmp_path).modules() if type(module).__name__ == "ResNeSt")
    norms = [module for module in body.modules() if "BatchNorm" in type(module).__name__]
    assert norms and all(isinstance(norm, torch.nn.BatchNorm2d) is not frozen for norm in norms)
    if frozen:  # transformers freezes them all, this package stem and first stage
        assert any(isinstance(norm, FrozenBatchNorm2d) for norm in norms)
        assert not body.stem.conv1_1.weight.requires_grad and body.res3[0].conv1.weight.requires_grad


def test_segments_of_the_three_kinds():
    masks = torch.zeros(2, 4, 6, dtype=torch.bool)
    masks[0, :2, :2] = masks[1, 2:, 4:] = True
    semantic = torch.full((4, 6), 2, dtype=torch.uint8)
    semantic[masks.any(0)] = 0
    semantic[0, 5] = 255
    target = {"masks": masks, "labels": torch.tensor([3, 1]), "sem_seg": semantic}
    ids, labels = data.segments_of({key: target[key] for key in ("masks", "labels")}, "instance", 4)
    assert sorted(labels.values()) == [1, 3] and [labels[ids[0, 0].item()], labels[ids[3, 5].item()]] == [3, 1] and ids[0, 3] == 0
    ids, labels = data.segments_of(target, "panoptic", 4)
    assert [labels[ids[0, 0].item()], labels[ids[3, 5].item()], labels[ids[0, 3].item()]] == [3, 1, 5] and ids[0, 5] == 0
    ids, labels = data.segments_of({"sem_seg": semantic}, "semantic", 4)
    assert labels == {1: 0, 3: 2} and ids[0, 0] == 1 and ids[0, 3] == 3 and ids[0, 5] == 0


def test_labels_are_the_datasets(few):
    names = {task: data.label_names(get_dataset(name, keep_truth=True), task) for task, name in few.items()}
    assert names["detection"] == names["instance"] == list(THINGS)
    assert names["panoptic"] == [*THINGS, *STUFF] and names["semantic"] == ["things", *STUFF]
    with pytest.raises(UserError, match="dataset few has no truth for the task panoptic"):
        data.label_names(get_dataset("few", keep_truth=True), "panoptic")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--recipe", "rt_detr_resnest50"], "rt_detr_resnest50 is no recipe for transformers: .*; nearest: rt_detr_v2_resnest50"),
        (["--recipe", "detr_resnest50", "learning_rat", "1"], "learning_rat is no setting of training; nearest: learning_rate"),
        (["--recipe", "detr_resnest50", "max_steps"], "'max_steps' has no value"),
        (["--recipe", "detr_resnest50", "task", "keypoints"], "task is 'keypoints'; supported: detection"),
        (["--recipe", "upernet_resnest50", "use_cpu", "true"], "dataset few has no truth for the task semantic"),
        (["--recipe", "detr_resnest50", "eval_strategy", "sometimes"], "transformers refuses the settings of training"),
    ],
)
def test_wrong_input_is_one_line(words, message, few, tmp_path):
    with pytest.raises(UserError, match=message):
        train_transformers.main(["--train", "few", "--val", "few", "--out", str(tmp_path), *words])
