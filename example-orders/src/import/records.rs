//! CSV records of bounded size, one after the other.
//!
//! The `csv` crate reads a record into memory however long it is, and takes a quote that nobody closed for a field that
//! runs to the end of the file. Here a record has at most [`MAX_RECORD_BYTES`], and one that breaks the rules costs its
//! own line alone: reading goes on at the next one.

use std::io::{self, Read};

use super::record::{Record, RecordFault};

/// The longest record, in bytes as they stand in the file.
pub(crate) const MAX_RECORD_BYTES: usize = 64 * 1024;

const BUFFER_BYTES: usize = 4 * MAX_RECORD_BYTES;

/// Where in a record the next byte stands.
#[derive(Clone, Copy, PartialEq)]
enum State {
    FieldStart,
    Plain,
    Quoted,
    /// Behind a quote inside a quoted field: its end, or the first half of a quote that belongs to the text.
    QuoteSeen,
    /// Behind a closing quote and a carriage return.
    ReturnSeen,
}

/// Reads records from `input`. Blank lines are passed over, and so is a byte order mark.
pub(crate) struct Records<R> {
    input: R,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    at_end: bool,
    failure: Option<io::Error>,
    line: u64,
}

impl<R: Read> Records<R> {
    pub(crate) fn new(input: R) -> Self {
        let buffer = vec![0; BUFFER_BYTES];
        let mut records = Self { input, buffer, start: 0, end: 0, at_end: false, failure: None, line: 1 };
        records.fill();
        if records.rest().starts_with("\u{feff}".as_bytes()) {
            records.start = 3;
        }
        records
    }

    /// Reads the next record into `record`. False at the end of the input: see [`Records::failure`].
    pub(crate) fn read(&mut self, record: &mut Record) -> bool {
        loop {
            self.fill();
            if self.start == self.end {
                return false;
            }
            record.clear();
            record.line = self.line;
            let taken = self.split(record);
            self.consume(taken);
            if record.fault.is_some() && !record.terminated {
                record.terminated = self.skip_line();
            }
            record.last_line = if record.terminated { self.line - 1 } else { self.line };
            if !record.is_blank() {
                return true;
            }
        }
    }

    /// Why the input ended, if it did so early.
    pub(crate) fn failure(&self) -> Option<&io::Error> {
        self.failure.as_ref()
    }

    /// Takes the first record of the buffer apart and returns how many bytes of it are done with. Of a bad record, that
    /// is its first line.
    fn split(&self, record: &mut Record) -> usize {
        let window = self.window();
        let mut state = State::FieldStart;
        for (index, &byte) in window.iter().enumerate() {
            state = match (state, byte) {
                (State::Quoted, b'"') => State::QuoteSeen,
                (State::Quoted, _) => {
                    record.text.push(byte);
                    State::Quoted
                }
                (State::QuoteSeen, b'"') => {
                    record.text.push(byte);
                    State::Quoted
                }
                (State::FieldStart | State::Plain | State::QuoteSeen, b',') => {
                    record.end_field();
                    State::FieldStart
                }
                (_, b'\n') => {
                    record.end_last_field(state != State::Plain);
                    record.terminated = true;
                    return index + 1;
                }
                (State::FieldStart, b'"') => State::Quoted,
                (State::FieldStart | State::Plain, _) => {
                    record.text.push(byte);
                    State::Plain
                }
                (State::QuoteSeen, b'\r') => State::ReturnSeen,
                (State::QuoteSeen | State::ReturnSeen, _) => return self.refuse(record, RecordFault::TextBehindQuote),
            };
        }
        if state == State::Quoted {
            return self.refuse(record, RecordFault::OpenQuote);
        }
        if window.len() < self.rest().len() {
            return self.refuse(record, RecordFault::TooLong);
        }
        record.end_last_field(state != State::Plain);
        window.len()
    }

    /// Gives a record up: its first line, as far as the window holds it.
    fn refuse(&self, record: &mut Record, fault: RecordFault) -> usize {
        record.refuse(fault);
        match self.window().iter().position(|&byte| byte == b'\n') {
            Some(index) => {
                record.terminated = true;
                index + 1
            }
            None => self.window().len(),
        }
    }

    /// Passes over the rest of a line, however long. False if the input ends first.
    fn skip_line(&mut self) -> bool {
        loop {
            self.fill();
            if self.start == self.end {
                return false;
            }
            if let Some(index) = self.rest().iter().position(|&byte| byte == b'\n') {
                self.consume(index + 1);
                return true;
            }
            self.start = self.end;
        }
    }

    fn consume(&mut self, bytes: usize) {
        let done = &self.buffer[self.start..self.start + bytes];
        self.line += done.iter().filter(|&&byte| byte == b'\n').count() as u64;
        self.start += bytes;
    }

    fn rest(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// As much of the buffer as a record may fill.
    fn window(&self) -> &[u8] {
        let rest = self.rest();
        &rest[..rest.len().min(MAX_RECORD_BYTES)]
    }

    /// Makes sure that the buffer holds a whole record, or all that is left.
    fn fill(&mut self) {
        if self.at_end || self.end - self.start > MAX_RECORD_BYTES {
            return;
        }
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        while !self.at_end && self.end < self.buffer.len() {
            match self.input.read(&mut self.buffer[self.end..]) {
                Ok(0) => self.at_end = true,
                Ok(bytes) => self.end += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.failure = Some(error);
                    self.at_end = true;
                }
            }
        }
    }
}
