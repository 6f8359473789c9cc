//! Records come out of the reader as the `csv` crate wrote them.

use std::io::{self, Read};

use proptest::prelude::*;

use crate::import::{record::Record, records::Records};

/// Hands its bytes out in pieces of `step` bytes.
struct Trickle<'a> {
    bytes: &'a [u8],
    step: usize,
}

impl Read for Trickle<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let bytes = self.step.min(into.len()).min(self.bytes.len());
        into[..bytes].copy_from_slice(&self.bytes[..bytes]);
        self.bytes = &self.bytes[bytes..];
        Ok(bytes)
    }
}

fn field() -> impl Strategy<Value = String> {
    "[a-z\",\r\n\u{e9}]{0,12}"
}

proptest! {
    #[test]
    fn what_was_written_is_read(
        rows in prop::collection::vec(prop::collection::vec(field(), 2..5), 0..40),
        windows in any::<bool>(),
        step in 1_usize..50,
    ) {
        let terminator = if windows { csv::Terminator::CRLF } else { csv::Terminator::Any(b'\n') };
        let mut writer = csv::WriterBuilder::new().flexible(true).terminator(terminator).from_writer(vec![]);
        rows.iter().for_each(|row| writer.write_record(row).unwrap());
        let text = writer.into_inner().unwrap();

        let mut records = Records::new(Trickle { bytes: &text, step });
        let (mut record, mut read) = (Record::default(), vec![]);
        while records.read(&mut record) {
            prop_assert_eq!(record.fault, None);
            read.push(record.fields().map(|field| String::from_utf8(field.to_vec()).unwrap()).collect::<Vec<_>>());
        }

        prop_assert_eq!(read, rows);
    }

    #[test]
    fn anything_at_all_is_read_to_its_end(bytes in prop::collection::vec(prop::sample::select(&b"a,\"\r\n"[..]), 0..400)) {
        let mut records = Records::new(&bytes[..]);
        let (mut record, mut last_line) = (Record::default(), 0);
        while records.read(&mut record) {
            prop_assert!(record.line > last_line && record.last_line >= record.line);
            last_line = record.last_line;
        }

        prop_assert!(last_line <= 1 + bytes.iter().filter(|&&byte| byte == b'\n').count() as u64);
    }
}
