//! Which column is which, and one row of them.

use chrono::{DateTime, Utc};

use super::{record::Record, rejection::Fault};
use crate::{
    figures::counted,
    order::{CustomerId, Line, MAX_ORDER_CENTS, OrderId, Sku, StoreId},
};

/// The columns that a file must have, in any order; it may have others.
const NAMES: [&str; 10] = [
    "order_id",
    "customer_id",
    "store_id",
    "placed_at",
    "sku",
    "product",
    "department",
    "quantity",
    "amount_cents",
    "discount_cents",
];

/// Why a file is no file of orders.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HeaderError {
    #[error("the file is empty; its first line should name the columns {}", NAMES.join(","))]
    Empty,
    #[error("the first line is no header: {0}")]
    Unreadable(String),
    #[error("the header has no column {missing}; it has {found}{hint}")]
    Missing { missing: &'static str, found: String, hint: &'static str },
    #[error("the header has the column {0} twice")]
    Twice(&'static str),
}

/// Where each column of a file stands.
#[derive(Debug)]
pub(crate) struct Columns {
    /// The place of each of [`NAMES`].
    places: [usize; NAMES.len()],
    count: usize,
}

/// One row: a line, and the order it belongs to.
#[derive(Debug, PartialEq)]
pub(crate) struct Row {
    pub(crate) customer: CustomerId,
    pub(crate) store: StoreId,
    pub(crate) placed_at: DateTime<Utc>,
    /// Its quantity may be 0.
    pub(crate) line: Line,
}

impl Columns {
    /// Finds the columns in the header of a file.
    ///
    /// # Errors
    /// [`HeaderError`] says what is missing.
    pub(crate) fn of(header: &Record) -> Result<Self, HeaderError> {
        if let Some(fault) = header.fault {
            return Err(HeaderError::Unreadable(fault.to_string()));
        }
        let found: Result<Vec<&str>, _> = header.fields().map(str::from_utf8).collect();
        let found = found.map_err(|_| HeaderError::Unreadable("it is not UTF-8".into()))?;
        let mut places = [0; NAMES.len()];
        for (place, name) in places.iter_mut().zip(NAMES) {
            let mut matches = found.iter().enumerate().filter(|(_, found)| found.trim() == name);
            let Some((index, _)) = matches.next() else {
                let found = found.join(",");
                let hint = match () {
                    () if found.contains(';') => "; it holds semicolons, but fields are separated by commas here",
                    () if found.contains('\t') => "; it holds tabs, but fields are separated by commas here",
                    () => "",
                };
                let found = found.chars().take(200).collect::<String>().escape_debug().to_string();
                return Err(HeaderError::Missing { missing: name, found, hint });
            };
            if matches.next().is_some() {
                return Err(HeaderError::Twice(name));
            }
            *place = index;
        }
        Ok(Self { places, count: found.len() })
    }

    /// The order that a row belongs to, whatever else is wrong with the row.
    ///
    /// # Errors
    /// The field is missing or no number.
    pub(crate) fn order(&self, record: &Record) -> Result<OrderId, Fault> {
        match record.fault {
            Some(fault) if self.places[0] >= record.len() => Err(Fault::new("row", fault.to_string())),
            _ => self.number(record, 0).map(OrderId),
        }
    }

    /// The order of a row that the file ends within: only if the field is whole, that is, another one follows.
    pub(crate) fn order_of_cut(&self, record: &Record) -> Option<OrderId> {
        let whole = record.len() - usize::from(record.fault.is_none());
        if self.places[0] < whole { self.order(record).ok() } else { None }
    }

    /// Whether a row has all its fields.
    pub(crate) fn are_all_in(&self, record: &Record) -> bool {
        record.fault.is_none() && record.len() >= self.count
    }

    /// The row, all its fields checked.
    ///
    /// # Errors
    /// The first fault in the order of [`NAMES`].
    pub(crate) fn row(&self, record: &Record) -> Result<Row, Fault> {
        if let Some(fault) = record.fault {
            return Err(Fault::new("row", fault.to_string()));
        }
        self.check_count(record)?;
        let customer = CustomerId(self.number(record, 1)?);
        let store = StoreId(self.number(record, 2)?);
        let placed_at = self.time(record, 3)?;
        let line = Line {
            sku: Sku(self.number(record, 4)?),
            product: self.text(record, 5)?.into(),
            department: self.text(record, 6)?.into(),
            quantity: self.number(record, 7)?,
            amount_cents: self.cents(record, 8)?,
            discount_cents: self.cents(record, 9)?,
        };
        Ok(Row { customer, store, placed_at, line })
    }

    fn check_count(&self, record: &Record) -> Result<(), Fault> {
        let reason = || format!("the row has {}, the header has {}", counted(record.len() as i64, "field"), self.count);
        if record.len() > self.count {
            return Err(Fault::new("row", reason()));
        }
        if record.len() < self.count {
            let column = self.places.iter().position(|&place| place == record.len());
            return Err(Fault::new(column.map_or("row", |column| NAMES[column]), reason()));
        }
        Ok(())
    }

    fn text<'a>(&self, record: &'a Record, column: usize) -> Result<&'a str, Fault> {
        let bytes = record.get(self.places[column]).ok_or_else(|| Fault::new(NAMES[column], "is missing"))?;
        let text = str::from_utf8(bytes).map_err(|_| Fault::new(NAMES[column], "is not UTF-8"))?;
        if text.contains('\0') {
            return Err(Fault::new(NAMES[column], "holds a NUL"));
        }
        Ok(text)
    }

    fn filled<'a>(&self, record: &'a Record, column: usize) -> Result<&'a str, Fault> {
        match self.text(record, column)? {
            "" => Err(Fault::new(NAMES[column], "is empty")),
            text => Ok(text),
        }
    }

    /// A whole number, 0 or more.
    fn number(&self, record: &Record, column: usize) -> Result<i64, Fault> {
        let text = self.filled(record, column)?;
        let digits = text.strip_prefix('-').unwrap_or(text);
        let reason = if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            "is not a whole number"
        } else if digits.len() < text.len() {
            "is negative"
        } else if let Ok(number) = digits.parse() {
            return Ok(number);
        } else {
            "is too large"
        };
        Err(Fault::new(NAMES[column], format!("{} {reason}", shown(text))))
    }

    fn cents(&self, record: &Record, column: usize) -> Result<i64, Fault> {
        match self.number(record, column)? {
            cents if cents > MAX_ORDER_CENTS => Err(Fault::new(NAMES[column], format!("{cents} is too large"))),
            cents => Ok(cents),
        }
    }

    fn time(&self, record: &Record, column: usize) -> Result<DateTime<Utc>, Fault> {
        let text = self.filled(record, column)?;
        match DateTime::parse_from_rfc3339(text) {
            Ok(time) => Ok(time.to_utc()),
            Err(_) => Err(Fault::new(NAMES[column], format!("{} is no time like 2017-01-31T18:30:00Z", shown(text)))),
        }
    }
}

/// The first 40 characters of a field, in quotes.
fn shown(text: &str) -> String {
    format!("{:?}", text.chars().take(40).collect::<String>())
}
