//! The books through restarts, and what the gateway's answers mean to a step.

mod client;

pub(crate) use client::Running;

use std::{
    fs,
    io::Write,
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
};

use super::{
    Switches,
    api::{ToCharge, ToRefund, ToSend},
    books::{Answer, Asked, Books},
};

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("books-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        Self(std::env::temp_dir().join(name))
    }

    fn open(&self) -> Books {
        Books::open(&self.0).unwrap()
    }

    fn append(&self, text: &str) {
        let mut file = fs::OpenOptions::new().append(true).open(self.0.join("books.jsonl")).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn charge(order: &str, cents: i64) -> Asked {
    Asked::Charge(ToCharge { order: order.into(), cents })
}

fn charged(books: &mut Books, key: &str, order: &str) -> String {
    match books.handle(key, charge(order, 100), false).unwrap() {
        Answer::Charged(charge) => charge.id,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_key_is_charged_once_also_by_the_next_process() {
    let folder = Folder::new();
    let mut books = folder.open();
    let first = charged(&mut books, "a", "1");
    assert_eq!(charged(&mut books, "a", "1"), first);
    assert_eq!(books.handle("a", charge("1", 101), false).unwrap(), Answer::OtherContents);
    assert_eq!(books.handle("b", charge("2", 100), true).unwrap(), Answer::Declined);
    let refund = Asked::Refund(ToRefund { charge: first.clone() });
    let refunded = books.handle("c", refund.clone(), false).unwrap();
    drop(books);

    let mut books = folder.open();

    assert_eq!(charged(&mut books, "a", "1"), first);
    assert_eq!(books.handle("b", charge("2", 100), false).unwrap(), Answer::Declined);
    assert_eq!(books.by_key("b").unwrap(), None, "it was declined");
    assert_eq!(books.handle("c", refund.clone(), false).unwrap(), refunded);
    assert_eq!(books.handle("d", refund, false).unwrap(), Answer::RefundedBefore);
    let missing = Asked::Refund(ToRefund { charge: "charge-9".into() });
    assert_eq!(books.handle("e", missing, false).unwrap(), Answer::Missing("charge-9".into()));
    let ledger = books.ledger(0);
    assert_eq!((ledger.charges.len(), ledger.charged_cents, ledger.refunded_cents), (1, 100, 100));
}

#[test]
fn a_key_that_was_asked_about_in_vain_is_never_charged() {
    let folder = Folder::new();
    let mut books = folder.open();
    charged(&mut books, "a", "1");
    assert!(books.by_key("a").unwrap().unwrap().charge.is_some());
    assert_eq!(books.by_key("b").unwrap().unwrap().charge, None);
    drop(books);

    let mut books = folder.open();

    assert_eq!(books.handle("b", charge("2", 100), false).unwrap(), Answer::Closed);
    assert_eq!(books.by_key("b").unwrap().unwrap().charge, None);
    assert_eq!(books.ledger(0).charges.len(), 1);
}

#[test]
fn a_key_sends_one_message_also_by_the_next_process() {
    let folder = Folder::new();
    let send = |text: &str| Asked::Send(ToSend { customer: "7".into(), order: "1".into(), text: text.into() });
    let mut books = folder.open();
    let first = books.handle("a", send("it is on its way"), false).unwrap();
    assert_eq!(books.handle("a", send("it is on its way"), false).unwrap(), first);
    books.handle("b", send("it is on its way"), false).unwrap();
    drop(books);

    let mut books = folder.open();

    assert_eq!(books.handle("a", send("it is on its way"), false).unwrap(), first);
    assert_eq!(books.handle("a", send("it is lost"), false).unwrap(), Answer::OtherContents);
    let ids: Vec<String> = books.ledger(0).messages.into_iter().map(|message| message.id).collect();
    assert_eq!(ids, ["message-1", "message-2"]);
}

#[test]
fn a_last_line_that_was_not_written_to_its_end_is_cut_off() {
    let folder = Folder::new();
    let mut books = folder.open();
    charged(&mut books, "a", "1");
    drop(books);
    folder.append("{\"Charged\":{\"key\":\"b\",\"char");

    let mut books = folder.open();
    assert_eq!(books.ledger(0).charges.len(), 1);
    charged(&mut books, "b", "2");
    drop(books);

    assert_eq!(folder.open().ledger(0).charges.len(), 2);
}

#[test]
fn books_that_cannot_be_read_or_are_kept_already_are_refused() {
    let folder = Folder::new();
    let books = folder.open();
    let refused = Books::open(&folder.0).err().unwrap();
    assert!(refused.contains("another gateway keeps these books"), "{refused}");
    drop(books);
    folder.append("nonsense\n");

    let refused = Books::open(&folder.0).err().unwrap();

    assert!(refused.contains("line 1: ") && refused.contains("move the file away"), "{refused}");
}

#[test]
fn a_switch_meets_its_share_and_the_same_ones_each_time() {
    let switches = Switches { seed: 7, ..Switches::default() };
    let met = |seed: u64, share: f64| -> Vec<bool> {
        let switches = Switches { seed, ..switches.clone() };
        (0..10_000).map(|nth| switches.meets("lost", share, &format!("order {nth}"), 1)).collect()
    };
    let count = |met: Vec<bool>| met.into_iter().filter(|met| *met).count();

    assert_eq!(met(7, 0.1), met(7, 0.1));
    assert_ne!(met(7, 0.1), met(8, 0.1));
    assert!((900..1_100).contains(&count(met(7, 0.1))));
    assert_eq!((count(met(7, 0.0)), count(met(7, 1.0))), (0, 10_000));
    assert!(Switches { lost: 1.5, ..Switches::default() }.check().is_err());
}
