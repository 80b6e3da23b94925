"""What runs miclip on machines of others: manifests, images, buckets and monitoring, made from typed values."""
