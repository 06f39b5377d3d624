"""From a model to a graph of operations: nn.Module, torch.fx and exported programs here, ONNX files in `onnx`."""
