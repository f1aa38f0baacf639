"""From images and chat turns to padded arrays: prompts, observations, batches, boxes and their spaces."""
