//! Figures as people read them.

/// A whole number: `1,469,307`.
pub(crate) fn count(number: i64) -> String {
    let digits = number.unsigned_abs().to_string();
    let mut text = String::from(if number < 0 { "-" } else { "" });
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// So many of something: `1 order`, `1,469 orders`.
pub(crate) fn counted(number: i64, thing: &str) -> String {
    format!("{} {thing}{}", count(number), if number == 1 { "" } else { "s" })
}

/// An amount of money: `$4,596,027.06`.
pub(crate) fn dollars(cents: i64) -> String {
    let sign = if cents < 0 { "-" } else { "" };
    let cents = cents.unsigned_abs();
    format!("{sign}${}.{:02}", count((cents / 100) as i64), cents % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_grouped() {
        assert_eq!([0, 12, 999, 1_000, -1_234_567].map(count), ["0", "12", "999", "1,000", "-1,234,567"]);
        assert_eq!([0, 1, 1_000].map(|number| counted(number, "order")), ["0 orders", "1 order", "1,000 orders"]);
        assert_eq!([5, -5, 459_602_706].map(dollars), ["$0.05", "-$0.05", "$4,596,027.06"]);
    }
}
