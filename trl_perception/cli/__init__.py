"""The command line: `trl-perception train | ask`."""
