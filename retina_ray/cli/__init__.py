"""The command line: one file per noun, each thin (parse, build the configuration, call, exit code)."""
