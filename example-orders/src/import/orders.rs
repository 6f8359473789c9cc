//! Orders out of a file of rows, one at a time, in bounded memory.

use std::{
    collections::{HashSet, VecDeque},
    io::Read,
};

use super::{
    columns::{Columns, HeaderError, Row},
    group::{FileOrder, Group},
    record::Record,
    records::Records,
    rejection::{Fault, Rejection},
};
use crate::order::OrderId;

/// How many rejected orders are remembered, to recognise rows of theirs that stand further down: about 18 MB.
const MAX_REMEMBERED: usize = 1_000_000;

const ENDS_EARLY: &str = "the file ends within this order";

/// What is found in a file, in the file's order.
#[derive(Debug, PartialEq)]
pub(crate) enum Entry {
    Order(FileOrder),
    Rejected(Rejection),
    /// The last entry of a file that ends early.
    EndsEarly {
        last_good_line: u64,
        reason: String,
    },
}

/// Reads orders from `input`: rows that follow each other and name the same order are one. A row that breaks a rule
/// rejects its whole order, and that order alone.
pub(crate) struct Orders<R> {
    records: Records<R>,
    columns: Columns,
    record: Record,
    group: Option<Group>,
    ready: VecDeque<Entry>,
    rejected: HashSet<OrderId>,
    last_good_line: u64,
    ended: bool,
}

impl<R: Read> Orders<R> {
    /// Reads the header of `input`.
    ///
    /// # Errors
    /// [`HeaderError`] if a column is missing.
    pub(crate) fn new(input: R) -> Result<Self, HeaderError> {
        let mut records = Records::new(input);
        let mut record = Record::default();
        if !records.read(&mut record) {
            return Err(match records.failure() {
                Some(error) => HeaderError::Unreadable(error.to_string()),
                None => HeaderError::Empty,
            });
        }
        Ok(Self {
            columns: Columns::of(&record)?,
            last_good_line: record.last_line,
            records,
            record,
            group: None,
            ready: VecDeque::new(),
            rejected: HashSet::new(),
            ended: false,
        })
    }

    fn step(&mut self) {
        if !self.records.read(&mut self.record) {
            return self.end();
        }
        let row = self.columns.row(&self.record);
        let failed = self.records.failure().is_some();
        if !self.record.terminated && (failed || !self.columns.are_all_in(&self.record)) {
            return self.end_within(row);
        }
        if row.is_ok() {
            self.last_good_line = self.record.last_line;
        }
        match self.columns.order(&self.record) {
            Ok(id) => self.add(id, row),
            Err(fault) => self.stray(fault),
        }
    }

    /// Adds a row to order `id`, which ends any other order.
    fn add(&mut self, id: OrderId, row: Result<Row, Fault>) {
        if self.group.as_ref().is_some_and(|group| group.id != id) {
            self.close();
        }
        let group = self.group.get_or_insert_with(|| Group::new(id, self.record.line));
        group.add(&self.record, row);
    }

    fn stray(&mut self, fault: Fault) {
        let stray = Rejection { line: self.record.line, order: None, fault, lines_dropped: 0 };
        match &mut self.group {
            Some(group) if group.stray.is_none() => group.stray = Some(stray),
            _ => self.ready.push_back(Entry::Rejected(stray)),
        }
    }

    /// Ends the group that is being read.
    fn close(&mut self) {
        let Some(group) = self.group.take() else { return };
        let (id, known) = (group.id, self.rejected.contains(&group.id));
        let (outcome, stray) = group.finish(known);
        if outcome.is_err() && self.rejected.len() < MAX_REMEMBERED {
            self.rejected.insert(id);
        }
        self.ready.push_back(outcome.map_or_else(Entry::Rejected, Entry::Order));
        self.ready.extend(stray.map(Entry::Rejected));
    }

    /// The input has ended, behind a line end.
    fn end(&mut self) {
        match self.records.failure().map(|error| error.to_string()) {
            Some(reason) => self.end_early(reason),
            None => self.close(),
        }
        self.ended = true;
    }

    /// The input has ended within a row.
    fn end_within(&mut self, row: Result<Row, Fault>) {
        let (row, reason) = match self.records.failure() {
            Some(error) => (Err(Fault::new("row", ENDS_EARLY)), error.to_string()),
            None => (row, "the last row is not whole".into()),
        };
        if let Some(id) = self.columns.order_of_cut(&self.record) {
            self.add(id, row);
        }
        self.end_early(reason);
        self.ended = true;
    }

    /// Rejects the order that is being read: nobody knows whether more rows of it were to come.
    fn end_early(&mut self, reason: String) {
        if let Some(group) = &mut self.group {
            group.fault.get_or_insert_with(|| (self.record.line, Fault::new("row", ENDS_EARLY)));
        }
        self.close();
        self.ready.push_back(Entry::EndsEarly { last_good_line: self.last_good_line, reason });
    }
}

impl<R: Read> Iterator for Orders<R> {
    type Item = Entry;

    fn next(&mut self) -> Option<Entry> {
        while self.ready.is_empty() && !self.ended {
            self.step();
        }
        self.ready.pop_front()
    }
}
