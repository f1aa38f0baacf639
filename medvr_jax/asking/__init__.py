"""`--mode=ask`: one question about one image, answered on the command line."""
