//! Orders out of a file of rows, one at a time, in bounded memory.

use std::{
    collections::{HashSet, VecDeque},
    io::Read,
};

use chrono::{DateTime, Utc};

use super::{
    columns::{Columns, HeaderError, Row},
    records::{Record, Records},
    rejection::{Fault, Rejection},
};
use crate::order::{CustomerId, Line, OrderId, Purchase, StoreId};

/// The most that one order may hold, in bytes of its rows' text. As an event, it would be too large for the store.
const MAX_ORDER_BYTES: usize = 1024 * 1024;

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

/// An order that can be imported.
#[derive(Debug, PartialEq)]
pub(crate) struct FileOrder {
    pub(crate) id: OrderId,
    /// The line of its first row.
    pub(crate) line: u64,
    pub(crate) purchase: Purchase,
    /// Rows of quantity 0 that were left out.
    pub(crate) lines_dropped: u64,
    /// What it holds, in bytes of text.
    pub(crate) bytes: usize,
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

/// The rows of one order, as far as they have been read.
struct Group {
    id: OrderId,
    line: u64,
    /// What the first good row says of the order.
    head: Option<(CustomerId, StoreId, DateTime<Utc>)>,
    lines: Vec<Line>,
    lines_dropped: u64,
    bytes: usize,
    /// The first thing that is wrong, and its line.
    fault: Option<(u64, Fault)>,
    /// A row behind the last one that names no order: it is one of this order's, if another of them follows.
    stray: Option<Rejection>,
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

impl Group {
    fn new(id: OrderId, line: u64) -> Self {
        Self { id, line, head: None, lines: vec![], lines_dropped: 0, bytes: 0, fault: None, stray: None }
    }

    fn add(&mut self, record: &Record, row: Result<Row, Fault>) {
        if let Some(stray) = self.stray.take() {
            self.fault.get_or_insert((stray.line, stray.fault));
        }
        if self.fault.is_some() {
            return;
        }
        self.bytes += record.bytes();
        if let Err(fault) = row.and_then(|row| self.take(row)) {
            self.fault = Some((record.line, fault));
            self.lines = vec![];
        }
    }

    fn take(&mut self, row: Row) -> Result<(), Fault> {
        let (customer, store, placed_at) = *self.head.get_or_insert((row.customer, row.store, row.placed_at));
        let differs = |field, first: &dyn std::fmt::Display| {
            Err(Fault::new(field, format!("differs from the order's first row, which has {first}")))
        };
        if row.customer != customer {
            return differs("customer_id", &customer);
        }
        if row.store != store {
            return differs("store_id", &store.0);
        }
        if row.placed_at != placed_at {
            return differs("placed_at", &placed_at.to_rfc3339());
        }
        if self.bytes > MAX_ORDER_BYTES {
            return Err(Fault::new("row", "the order has too many rows: more than 1 MiB"));
        }
        match row.line.quantity {
            0 => self.lines_dropped += 1,
            _ => self.lines.push(row.line),
        }
        Ok(())
    }

    /// The order or its rejection, and the stray behind it.
    fn finish(self, rejected_before: bool) -> (Result<FileOrder, Rejection>, Option<Rejection>) {
        let Self { id, line, head, lines, lines_dropped, bytes, fault, stray } = self;
        let reject = |line, fault, lines_dropped| Rejection { line, order: Some(id), fault, lines_dropped };
        let outcome = match (fault, head) {
            (Some((line, fault)), _) => Err(reject(line, fault, 0)),
            (None, _) if rejected_before => {
                let fault = Fault::new("order_id", "other rows of this order were rejected before");
                Err(reject(line, fault, 0))
            }
            (None, Some(_)) if lines.is_empty() => {
                let fault = Fault::new("quantity", "the order has no line left: every quantity is 0");
                Err(reject(line, fault, lines_dropped))
            }
            (None, Some((customer, store, placed_at))) => Purchase::new(customer, store, placed_at, lines)
                .map(|purchase| FileOrder { id, line, purchase, lines_dropped, bytes })
                .map_err(|error| reject(line, Fault::new("amount_cents", error.to_string()), 0)),
            (None, None) => Err(reject(line, Fault::new("row", "the order has no row"), 0)),
        };
        (outcome, stray)
    }
}
