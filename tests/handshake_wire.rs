//! Properties of the messages of the handshake: what is encoded decodes to the same, and what is
//! decoded was not read past its end.

#![cfg(feature = "proptest")]

use nbd_proto::conformance::strategy::handshake as strategy;
use nbd_proto::wire::{
    ClientFlags, ClientOption, ExportNameReply, GreetingStyle, Info, NewstyleGreeting,
    OldstyleGreeting, OptionCode, OptionHeader, OptionReply, OptionReplyHeader, ReplyType,
};
use proptest::prelude::*;

proptest! {
    #[test]
    fn greetings_survive_the_wire(
        new in strategy::newstyle_greeting(),
        old in strategy::oldstyle_greeting(),
        flags in strategy::client_flags(),
        reply in strategy::export_name_reply(),
    ) {
        prop_assert_eq!(NewstyleGreeting::from_bytes(&new.to_bytes()), Ok(new));
        prop_assert_eq!(OldstyleGreeting::from_bytes(&old.to_bytes()), Ok(old));
        prop_assert_eq!(ClientFlags::from_bytes(&flags.to_bytes()), flags);
        prop_assert_eq!(ExportNameReply::from_bytes(&reply.to_bytes()), reply);
        let style = GreetingStyle::from_bytes(new.to_bytes().first_chunk().unwrap());
        prop_assert_eq!(style, Ok(GreetingStyle::Newstyle));
        let style = GreetingStyle::from_bytes(old.to_bytes().first_chunk().unwrap());
        prop_assert_eq!(style, Ok(GreetingStyle::Oldstyle));
    }

    #[test]
    fn options_survive_the_wire(option in strategy::client_option()) {
        let mut wire = vec![];
        option.encode(&mut wire);
        let (header, body) = wire.split_first_chunk().unwrap();
        let header = OptionHeader::from_bytes(header).unwrap();
        prop_assert_eq!(header.option, option.code());
        prop_assert_eq!(header.length as usize, body.len());
        prop_assert_eq!(header.to_bytes().to_vec(), &wire[..16]);
        prop_assert_eq!(ClientOption::parse(header.option, body), Ok(option));
    }

    #[test]
    fn option_replies_survive_the_wire(reply in strategy::option_reply(), option: u32) {
        let mut wire = vec![];
        reply.encode(OptionCode(option), &mut wire);
        let (header, body) = wire.split_first_chunk().unwrap();
        let header = OptionReplyHeader::from_bytes(header).unwrap();
        prop_assert_eq!(header.option, OptionCode(option));
        prop_assert_eq!(header.reply, reply.reply_type());
        prop_assert_eq!(header.length as usize, body.len());
        prop_assert_eq!(header.to_bytes().to_vec(), &wire[..20]);
        prop_assert_eq!(OptionReply::parse(header.reply, body), Ok(reply));
    }

    #[test]
    fn infos_survive_the_wire(info in strategy::info()) {
        let mut wire = vec![];
        info.encode(&mut wire);
        prop_assert_eq!(Info::parse(&wire), Ok(info));
    }

    /// There is one way to write an option: what parses at all is what its encoding parses to.
    #[test]
    fn an_option_that_parses_is_encoded_as_it_came(
        (code, body) in strategy::framed_option(),
    ) {
        if let Ok(option) = ClientOption::parse(code, &body) {
            let mut wire = vec![];
            option.encode(&mut wire);
            if option == ClientOption::Abort {
                prop_assert_eq!(wire.len(), OptionHeader::LEN);
            } else {
                prop_assert_eq!(wire, strategy::frame(code, &body));
            }
        }
    }

    #[test]
    fn any_body_of_a_reply_is_parsed_or_refused(
        reply in prop_oneof![1..5u32, any::<u32>()],
        body in proptest::collection::vec(any::<u8>(), 0..64),
    ) {
        if let Ok(parsed) = OptionReply::parse(ReplyType(reply), &body) {
            let mut wire = vec![];
            parsed.encode(OptionCode::GO, &mut wire);
            // Text may have been mended; once mended it stays as it is.
            prop_assert_eq!(OptionReply::parse(ReplyType(reply), &wire[20..]), Ok(parsed));
        }
    }

    /// The end of a body is where its header says: one byte less or more is noticed, by every
    /// message that does not end in free text or data.
    #[test]
    fn a_body_that_is_cut_short_is_never_taken_for_the_whole(
        request in strategy::info_request(),
        queries in strategy::meta_context_request(),
    ) {
        for option in [ClientOption::Go(request), ClientOption::SetMetaContext(queries)] {
            let mut wire = vec![];
            option.encode(&mut wire);
            let body = &wire[16..];
            for len in 0..body.len().min(200) {
                prop_assert!(ClientOption::parse(option.code(), &body[..len]).is_err());
            }
            wire.push(0);
            prop_assert!(ClientOption::parse(option.code(), &wire[16..]).is_err());
        }
    }
}
