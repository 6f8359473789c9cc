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

/// A span of time, in its largest unit: `12 s`, `3 min`, `5 h`, `8 d`.
pub(crate) fn span(seconds: f64) -> String {
    let seconds = seconds.max(0.0);
    match seconds {
        _ if seconds < 60.0 => format!("{} s", seconds as i64),
        _ if seconds < 3_600.0 => format!("{} min", seconds as i64 / 60),
        _ if seconds < 172_800.0 => format!("{} h", seconds as i64 / 3_600),
        _ => format!("{} d", count(seconds as i64 / 86_400)),
    }
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

    #[test]
    fn a_span_of_time_is_told_in_its_largest_unit() {
        let spans = [-1.0, 59.9, 60.0, 3_599.0, 3_600.0, 172_799.0, 172_800.0].map(span);
        assert_eq!(spans, ["0 s", "59 s", "1 min", "59 min", "1 h", "47 h", "2 d"]);
    }
}
