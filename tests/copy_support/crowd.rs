//! Servers with several clients at once, which remember in which order they were asked what.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use nbd_proto::wire::{CommandType, Request};

use super::{Disk, Offer, Peer, SERVER_PATIENCE, shake_hands};

/// What happened, in the order in which it did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Event {
    Came(usize),
    Asked(usize, Request),
    Answered(usize, Request),
    Left(usize),
}

/// A server for any number of clients, each in a thread of its own, on one disk.
pub(crate) struct Crowd {
    address: SocketAddr,
    pub(crate) disk: Disk,
    events: Arc<Events>,
    is_over: Arc<AtomicBool>,
    /// Dropped with the server: the test is over.
    _test: Arc<Mutex<Vec<Sender<()>>>>,
}

#[derive(Default)]
struct Events {
    all: Mutex<Vec<Event>>,
    more: Condvar,
}

impl Events {
    fn note(&self, event: Event) {
        self.all.lock().unwrap().push(event);
        self.more.notify_all();
    }
}

impl Crowd {
    /// A server without fault.
    pub(crate) fn good(offer: Offer, contents: Vec<u8>) -> Self {
        Self::new(move |_| Some(offer.clone()), contents, |_, _, _| false)
    }

    /// Makes an offer to each client, or hangs up on it, and does something else with the requests
    /// for which `special` returns true. Clients are numbered from 0.
    pub(crate) fn new(
        offer: impl Fn(usize) -> Option<Offer> + Send + Sync + 'static,
        contents: Vec<u8>,
        special: impl Fn(usize, &mut Peer, &Request) -> bool + Send + Sync + 'static,
    ) -> Self {
        Self::meeting(move |number, _| offer(number), contents, special)
    }

    /// The same; whom to make an offer may depend on the connection, before anything came of it.
    pub(crate) fn meeting(
        offer: impl Fn(usize, &TcpStream) -> Option<Offer> + Send + Sync + 'static,
        contents: Vec<u8>,
        special: impl Fn(usize, &mut Peer, &Request) -> bool + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let crowd = Self {
            address: listener.local_addr().unwrap(),
            disk: Arc::new(Mutex::new(contents)),
            events: Arc::default(),
            is_over: Arc::default(),
            _test: Arc::default(),
        };
        let (disk, events) = (Arc::clone(&crowd.disk), Arc::clone(&crowd.events));
        let (is_over, tests) = (Arc::clone(&crowd.is_over), Arc::clone(&crowd._test));
        let behave = Arc::new((offer, special));
        thread::spawn(move || {
            for (number, stream) in listener.incoming().flatten().enumerate() {
                if is_over.load(Ordering::SeqCst) {
                    return;
                }
                let (sender, test) = mpsc::channel();
                tests.lock().unwrap().push(sender);
                let (disk, events) = (Arc::clone(&disk), Arc::clone(&events));
                let behave = Arc::clone(&behave);
                thread::spawn(move || {
                    let (offer, special) = &*behave;
                    let offer = offer(number, &stream);
                    let Some(mut peer) = meet(stream, offer, disk, test) else {
                        return;
                    };
                    let note = |event| events.note(event);
                    note(Event::Came(number));
                    while let Some((request, payload)) = peer.next_request() {
                        note(Event::Asked(number, request));
                        if !special(number, &mut peer, &request) {
                            peer.answer_after(&request, &payload, || {
                                note(Event::Answered(number, request));
                            });
                        }
                    }
                    note(Event::Left(number));
                });
            }
        });
        crowd
    }

    pub(crate) fn uri(&self) -> String {
        format!("nbd://{}/disk", self.address)
    }

    pub(crate) fn events(&self) -> Vec<Event> {
        self.events.all.lock().unwrap().clone()
    }

    /// All requests of one kind, and on which connection.
    pub(crate) fn asked(&self, kind: CommandType) -> Vec<(usize, Request)> {
        let events = self.events();
        let asked = events.iter().filter_map(|event| match event {
            Event::Asked(number, request) if request.kind == kind => Some((*number, *request)),
            _ => None,
        });
        asked.collect()
    }

    /// How many clients there were, once all have left.
    pub(crate) fn clients(&self) -> usize {
        let events = self.events.all.lock().unwrap();
        let count = |events: &[Event]| {
            let came = events.iter().filter(|it| matches!(it, Event::Came(_)));
            let left = events.iter().filter(|it| matches!(it, Event::Left(_)));
            (came.count(), left.count())
        };
        let is_here = |events: &mut Vec<Event>| {
            let (came, left) = count(events);
            came == 0 || left < came
        };
        let waited = self
            .events
            .more
            .wait_timeout_while(events, SERVER_PATIENCE, is_here);
        let (events, waited) = waited.unwrap();
        assert!(!waited.timed_out(), "a client did not leave");
        count(&events).0
    }

    /// The connections on which one kind was asked for.
    pub(crate) fn used_for(&self, kind: CommandType) -> Vec<usize> {
        let mut numbers: Vec<_> = self.asked(kind).iter().map(|(number, _)| *number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        // It waits for clients: here is the last one.
        let _ = TcpStream::connect(self.address);
    }
}

fn meet(
    mut stream: TcpStream,
    offer: Option<Offer>,
    disk: Disk,
    test: mpsc::Receiver<()>,
) -> Option<Peer> {
    let offer = offer?;
    stream.set_read_timeout(Some(SERVER_PATIENCE)).unwrap();
    stream.set_write_timeout(Some(SERVER_PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    let session = shake_hands(&mut stream, &offer)?;
    let (log, _) = mpsc::channel();
    Some(Peer::new(stream, session, disk, log, test))
}
