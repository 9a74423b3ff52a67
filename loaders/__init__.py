"""From bytes on disk to minibatches: sources, stores and the streams that read them."""
