"""One model on the embedded engine and on a real Triton, asked the same: `forwardpass diff`."""
