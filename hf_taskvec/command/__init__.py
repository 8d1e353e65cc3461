"""The command `hf-taskvec`, also as `hf taskvec`; a file here holds a group of verbs and imports nothing heavy."""
