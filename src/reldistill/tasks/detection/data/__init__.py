"""Images with boxes: COCO, VOC and YOLO files, augmentation, loading."""
