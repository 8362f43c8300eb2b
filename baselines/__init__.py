"""The competitors, one file each; they enter through entry points, like a stranger's."""
