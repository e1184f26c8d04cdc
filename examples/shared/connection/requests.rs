//! What a client can ask for. Nothing is sent before the connection is driven.

use std::time::Instant;

use nbd_proto::wire::{CommandFlags, Cookie, Request};

use super::{Connection, Error, Outgoing, Slot};

impl Connection {
    /// Asks for data, to be put into `buffer`.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] if the server could only refuse it.
    pub(crate) fn read(
        &mut self,
        offset: u64,
        length: usize,
        mut buffer: Vec<u8>,
    ) -> Result<Cookie, Error> {
        buffer.resize(length, 0);
        let cookie = self.cookie();
        self.submit(Request::read(cookie, offset, length as u64), buffer)
    }

    /// Writes all of `buffer`, in the way that the flags say.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] if the server could only refuse it.
    pub(crate) fn write(
        &mut self,
        offset: u64,
        buffer: Vec<u8>,
        flags: CommandFlags,
    ) -> Result<Cookie, Error> {
        let cookie = self.cookie();
        let request = Request::write(cookie, offset, buffer.len() as u64).with_flags(flags);
        self.submit(request, buffer)
    }

    /// Makes a range read as zeroes, in the way that the flags say.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] if the server could only refuse it.
    pub(crate) fn write_zeroes(
        &mut self,
        offset: u64,
        length: u64,
        flags: CommandFlags,
    ) -> Result<Cookie, Error> {
        let cookie = self.cookie();
        let request = Request::write_zeroes(cookie, offset, length).with_flags(flags);
        self.submit(request, Vec::new())
    }

    /// Asks which parts of a range read as zeroes.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] if the server could only refuse it.
    pub(crate) fn block_status(&mut self, offset: u64, length: u64) -> Result<Cookie, Error> {
        let cookie = self.cookie();
        let request = Request::block_status(cookie, offset, length);
        self.submit(request, Vec::new())
    }

    /// Gives a range up, in the way that the flags say.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] if the server could only refuse it.
    #[allow(dead_code, reason = "for programs that judge servers")]
    pub(crate) fn trim(
        &mut self,
        offset: u64,
        length: u64,
        flags: CommandFlags,
    ) -> Result<Cookie, Error> {
        let cookie = self.cookie();
        let request = Request::trim(cookie, offset, length).with_flags(flags);
        self.submit(request, Vec::new())
    }

    /// Tells that a range will be read soon.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] if the server could only refuse it.
    #[allow(dead_code, reason = "for programs that judge servers")]
    pub(crate) fn cache(&mut self, offset: u64, length: u64) -> Result<Cookie, Error> {
        let cookie = self.cookie();
        let request = Request::cache(cookie, offset, length);
        self.submit(request, Vec::new())
    }

    /// Asks for everything that was written to be put on permanent storage.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] if the server could only refuse it.
    pub(crate) fn flush(&mut self) -> Result<Cookie, Error> {
        let cookie = self.cookie();
        self.submit(Request::flush(cookie), Vec::new())
    }

    /// Cookies are not used again, so that a reply that comes twice is found out.
    const fn cookie(&mut self) -> Cookie {
        self.next_cookie += 1;
        Cookie(self.next_cookie)
    }

    fn submit(&mut self, request: Request, buffer: Vec<u8>) -> Result<Cookie, Error> {
        let head = self
            .encoder
            .encode(&request)
            .map_err(|why| Error::Request(why.to_string()))?;
        self.decoder
            .expect(&request)
            .map_err(|why| Error::Request(why.to_string()))?;
        if self.is_idle() {
            self.moved = Instant::now();
        }
        let cookie = request.cookie;
        let slot = Slot {
            request,
            buffer,
            extents: Vec::new(),
            message: String::new(),
            sent: false,
            result: None,
        };
        self.slots.insert(cookie, slot);
        self.outgoing.push_back(Outgoing {
            head,
            cookie,
            written: 0,
        });
        Ok(cookie)
    }
}
