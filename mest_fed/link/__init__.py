"""The edge link: devices take part without torch or Flower, over a gRPC protocol of our own."""
