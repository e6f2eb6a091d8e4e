"""Labels of every common format, read into the typed document that `data/annotation_files.py` has for COCO (docs/labels.md).

`splits.find_splits` recognises a folder and its splits; `reading.read_labels` reads one of them; `writing` writes them back. Each
format has a module of its own that hands its images and objects to a `collector.Collector`, which holds them to the same rules.
"""
