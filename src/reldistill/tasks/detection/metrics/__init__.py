"""Average precision and kinds of errors of detections."""
