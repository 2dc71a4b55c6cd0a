"""The networks on ONNX Runtime: graphs that are written here, and the runner that runs them."""
