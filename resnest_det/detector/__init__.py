"""The built-in R-CNN family: Faster, Mask and Cascade R-CNN over a feature pyramid, equal to Detectron2 in numbers and names."""
