"""The same operator without a cluster: objects are files in a folder, containers are processes.

It implements the ports for one machine and grows no features of its own.
"""
