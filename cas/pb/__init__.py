"""The protocols' messages and service descriptors.

Rule: nothing is written by hand here.  The `*_pb2` modules are generated from
`protos/cas/pb/*.proto` by `protos/build_hook.py` whenever the project is built or installed.
"""
