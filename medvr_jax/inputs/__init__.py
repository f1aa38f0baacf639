"""From images and chat turns to padded arrays: images, tokenizer, prompts, observations, buckets, boxes and their spaces."""
