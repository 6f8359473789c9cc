//! JSON text that a caller hands in and the store keeps as it is: checked, never rebuilt.

use super::{
    PayloadLimits,
    refusal::{Refusal, Step},
};
use crate::InvalidInput;

/// Checks that `text` is JSON (RFC 8259) that Postgres can store and serde_json can read back.
///
/// Beyond the grammar it refuses the escape `\u0000`, surrogates without their other half, and numbers too large for
/// an `f64`. One pass, and no recursion.
///
/// # Errors
/// [`InvalidInput::Field`] with the path of the field, [`InvalidInput::PayloadTooLarge`].
pub(crate) fn check_json(event_type: &str, text: &str, limits: &PayloadLimits) -> Result<(), InvalidInput> {
    if text.len() > limits.bytes {
        let (bytes, limit) = (text.len(), limits.bytes);
        return Err(InvalidInput::PayloadTooLarge { event_type: event_type.to_owned(), bytes, limit });
    }
    scan(text, 0, limits.depth).map_err(|refusal| refusal.into_invalid_input(event_type, "JSON text"))
}

/// [`check_json`] for a part of a payload that stands below `outer` levels of it.
pub(crate) fn scan(text: &str, outer: usize, depth: usize) -> Result<(), Refusal> {
    let mut scanner = Scanner { text, bytes: text.as_bytes(), at: 0, open: vec![], outer, depth };
    scanner.document().map_err(|reason| scanner.locate(reason))
}

struct Scanner<'t> {
    text: &'t str,
    bytes: &'t [u8],
    at: usize,
    open: Vec<Open>,
    outer: usize,
    depth: usize,
}

/// An array or object that is not closed yet.
enum Open {
    Array {
        index: usize,
    },
    /// The key of the current entry, without its quotes; none while a key is read.
    Object {
        key: Option<(usize, usize)>,
    },
}

impl Scanner<'_> {
    fn document(&mut self) -> Result<(), Refusal> {
        loop {
            self.space();
            let entered = match self.peek() {
                Some(b'{') => self.enter(Open::Object { key: None }, b'}')?,
                Some(b'[') => self.enter(Open::Array { index: 0 }, b']')?,
                _ => {
                    self.scalar()?;
                    false
                }
            };
            if entered {
                continue;
            }
            if self.leave()? {
                return Ok(());
            }
        }
    }

    /// Opens an array or object; false if it is empty, and so closed again.
    fn enter(&mut self, open: Open, closing: u8) -> Result<bool, Refusal> {
        if self.outer + self.open.len() >= self.depth {
            return Err(Refusal::too_deep(self.depth));
        }
        self.at += 1;
        self.space();
        if self.peek() == Some(closing) {
            self.at += 1;
            return Ok(false);
        }
        let is_object = matches!(open, Open::Object { .. });
        self.open.push(open);
        if is_object {
            self.key()?;
        }
        Ok(true)
    }

    /// Behind a value: closes what ends here and steps to the next value. True at the end of the text.
    fn leave(&mut self) -> Result<bool, Refusal> {
        loop {
            self.space();
            match (self.open.last_mut(), self.bytes.get(self.at)) {
                (None, None) => return Ok(true),
                (None, Some(_)) => return Err(self.invalid("something follows the value")),
                (Some(Open::Array { index }), Some(b',')) => {
                    *index += 1;
                    self.at += 1;
                    return Ok(false);
                }
                (Some(Open::Object { key }), Some(b',')) => {
                    *key = None;
                    self.at += 1;
                    self.space();
                    self.key()?;
                    return Ok(false);
                }
                (Some(Open::Array { .. }), Some(b']')) | (Some(Open::Object { .. }), Some(b'}')) => {
                    self.at += 1;
                    self.open.pop();
                }
                (Some(Open::Array { .. }), _) => return Err(self.invalid("`,` or `]` is expected")),
                (Some(Open::Object { .. }), _) => return Err(self.invalid("`,` or `}` is expected")),
            }
        }
    }

    fn key(&mut self) -> Result<(), Refusal> {
        if self.peek() != Some(b'"') {
            return Err(self.invalid("a key in quotes is expected"));
        }
        let start = self.at + 1;
        self.string().map_err(Refusal::of_key)?;
        if let Some(Open::Object { key }) = self.open.last_mut() {
            *key = Some((start, self.at - 1));
        }
        self.space();
        if self.peek() != Some(b':') {
            return Err(self.invalid("`:` is expected"));
        }
        self.at += 1;
        Ok(())
    }

    fn scalar(&mut self) -> Result<(), Refusal> {
        match self.peek() {
            Some(b'"') => self.string(),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b't') => self.word("true"),
            Some(b'f') => self.word("false"),
            Some(b'n') => self.word("null"),
            _ => Err(self.invalid("a value is expected")),
        }
    }

    fn word(&mut self, word: &str) -> Result<(), Refusal> {
        if !self.bytes[self.at..].starts_with(word.as_bytes()) {
            return Err(self.invalid("a value is expected"));
        }
        self.at += word.len();
        Ok(())
    }

    fn string(&mut self) -> Result<(), Refusal> {
        self.at += 1;
        loop {
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(());
                }
                Some(b'\\') => self.escape()?,
                Some(0..0x20) => return Err(self.invalid("a control character stands in a text unescaped")),
                Some(_) => self.at += 1,
                None => return Err(self.invalid("a text has no end")),
            }
        }
    }

    fn escape(&mut self) -> Result<(), Refusal> {
        match self.bytes.get(self.at + 1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {
                self.at += 2;
                Ok(())
            }
            Some(b'u') => match self.unit(self.at)? {
                0 => Err(Refusal::value("the text holds the character \\u0000, which Postgres cannot store")),
                0xdc00..0xe000 => Err(lone_surrogate()),
                0xd800..0xdc00 => {
                    let has_second = self.bytes[self.at + 6..].starts_with(b"\\u");
                    if !has_second || !(0xdc00..0xe000).contains(&self.unit(self.at + 6)?) {
                        return Err(lone_surrogate());
                    }
                    self.at += 12;
                    Ok(())
                }
                _ => {
                    self.at += 6;
                    Ok(())
                }
            },
            _ => Err(self.invalid("there is no such escape")),
        }
    }

    /// The UTF-16 unit that `\uXXXX` at `start` stands for.
    fn unit(&self, start: usize) -> Result<u32, Refusal> {
        let digits = self.bytes.get(start + 2..start + 6);
        let digit = |byte: u8| char::from(byte).to_digit(16);
        digits
            .and_then(|digits| digits.iter().try_fold(0, |unit, &byte| Some(unit * 16 + digit(byte)?)))
            .ok_or_else(|| self.invalid("four hexadecimal digits are expected"))
    }

    fn number(&mut self) -> Result<(), Refusal> {
        let start = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        let has_exponent = matches!(self.peek(), Some(b'e' | b'E'));
        if has_exponent {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        // The largest f64 has 309 digits: a shorter number without an exponent needs no second look.
        let may_overflow = has_exponent || self.at - start > 300;
        if may_overflow && serde_json::from_str::<f64>(&self.text[start..self.at]).is_err() {
            return Err(Refusal::value("the number is too large for a 64-bit float"));
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), Refusal> {
        let start = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        if self.at == start {
            return Err(self.invalid("a digit is expected"));
        }
        Ok(())
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\n' | b'\r' | b'\t')) {
            self.at += 1;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn invalid(&self, what: &str) -> Refusal {
        Refusal::value(format!("not valid JSON at byte {}: {what}", self.at))
    }

    fn locate(&self, refusal: Refusal) -> Refusal {
        self.open.iter().rev().fold(refusal, |refusal, open| match open {
            Open::Array { index } => refusal.within(Step::Index(*index)),
            Open::Object { key: Some((start, end)) } => refusal.within_key(&self.text[*start..*end]),
            Open::Object { key: None } => refusal,
        })
    }
}

fn lone_surrogate() -> Refusal {
    Refusal::value("the text holds half of a surrogate pair, which is no character")
}

#[cfg(test)]
mod tests;
