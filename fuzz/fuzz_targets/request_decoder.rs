#![cfg_attr(fuzzing, no_main)]
nbd_proto_fuzz::target!(request_decoder);
