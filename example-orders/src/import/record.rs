//! One record of a CSV file.

/// One record: its fields, unquoted. Reused from record to record.
#[derive(Debug, Default)]
pub(crate) struct Record {
    pub(super) text: Vec<u8>,
    ends: Vec<usize>,
    /// The line on which it begins; the first line of a file is 1.
    pub(crate) line: u64,
    /// The line on which it ends.
    pub(crate) last_line: u64,
    /// What is wrong with it. The fields are then those before the wrong one.
    pub(crate) fault: Option<RecordFault>,
    /// Whether a line end follows. If not, the file ends here, perhaps too early.
    pub(crate) terminated: bool,
}

/// Why a record cannot be taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RecordFault {
    #[error("text follows a closing quote")]
    TextBehindQuote,
    #[error("a quote is not closed")]
    OpenQuote,
    #[error("the record is longer than 65536 bytes")]
    TooLong,
}

impl Record {
    /// How many fields there are.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The field `index`, from 0.
    pub(crate) fn get(&self, index: usize) -> Option<&[u8]> {
        let end = *self.ends.get(index)?;
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        Some(&self.text[start..end])
    }

    /// All fields.
    pub(crate) fn fields(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.len()).filter_map(|index| self.get(index))
    }

    /// The bytes of all fields together.
    pub(crate) fn bytes(&self) -> usize {
        self.text.len()
    }

    pub(super) fn is_blank(&self) -> bool {
        self.fault.is_none() && self.ends.len() == 1 && self.text.is_empty()
    }

    /// Gives the record up, with the fields that are whole.
    pub(super) fn refuse(&mut self, fault: RecordFault) {
        self.text.truncate(self.ends.last().copied().unwrap_or(0));
        self.fault = Some(fault);
    }

    pub(super) fn clear(&mut self) {
        self.text.clear();
        self.ends.clear();
        self.fault = None;
        self.terminated = false;
    }

    pub(super) fn end_field(&mut self) {
        self.ends.push(self.text.len());
    }

    /// Ends the field before a line end, which may be `\r\n`.
    pub(super) fn end_last_field(&mut self, quoted: bool) {
        if !quoted && self.text.last() == Some(&b'\r') {
            self.text.pop();
        }
        self.end_field();
    }
}
