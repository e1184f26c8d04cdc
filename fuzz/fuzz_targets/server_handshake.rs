#![cfg_attr(fuzzing, no_main)]
nbd_proto_fuzz::target!(server_handshake);
