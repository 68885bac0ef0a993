"""The functions of the Python interface, of which the commands are made, too."""
