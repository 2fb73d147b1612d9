"""What gateway and twin agree on: records, rules, tag frames, dialects. Pure: no clock, no files, no network."""
