//! The gateway's books: what it has done, in a file that is only ever appended to, and what that comes to.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, SeekFrom, Write},
    path::Path,
};

use serde::{Deserialize, Serialize};

use super::api::{Charge, Found, Ledger, Message, Refund, Shipment, ToCharge, ToRefund, ToSend, ToShip};

/// One line of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Entry {
    Charged {
        key: String,
        charge: Charge,
    },
    Declined {
        key: String,
        asked: ToCharge,
    },
    /// Nothing was charged under the key, and nothing will be.
    Closed {
        key: String,
    },
    Refunded {
        key: String,
        refund: Refund,
    },
    Shipped {
        key: String,
        shipment: Shipment,
    },
    ShipmentCancelled {
        key: String,
        id: String,
    },
    Sent {
        key: String,
        message: Message,
    },
}

/// What is asked under a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Asked {
    Charge(ToCharge),
    Refund(ToRefund),
    Ship(ToShip),
    /// The shipment of this id.
    CancelShipment(String),
    Send(ToSend),
}

/// What a request is answered with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    Charged(Charge),
    Declined,
    /// Somebody asked about the key and was told that nothing had happened: now nothing does.
    Closed,
    Refunded(Refund),
    Shipped(Shipment),
    Sent(Message),
    /// There is no such charge or shipment.
    Missing(String),
    /// The charge was given back under another key.
    RefundedBefore,
    /// The key was used for something else.
    OtherContents,
}

/// What was done, and the file that says so.
pub(crate) struct Books {
    file: File,
    /// What each key was used for.
    keys: HashMap<String, (Asked, Answer)>,
    closed: HashSet<String>,
    charges: BTreeMap<u64, Charge>,
    refunds: BTreeMap<u64, Refund>,
    shipments: BTreeMap<u64, Shipment>,
    messages: BTreeMap<u64, Message>,
    refunded: HashSet<String>,
}

impl Books {
    /// Opens the books in `folder`, which is made if it is not there. A last line that was not written to its end is cut off: nobody
    /// was answered for it.
    ///
    /// # Errors
    /// The folder cannot be used, another gateway uses it, or a line cannot be read.
    pub(crate) fn open(folder: &Path) -> Result<Self, String> {
        let path = folder.join("books.jsonl");
        let named = |what: &str, error: &dyn std::fmt::Display| format!("cannot {what} {}: {error}", path.display());
        fs::create_dir_all(folder).map_err(|error| named("make the folder of", &error))?;
        let mut options = OpenOptions::new();
        let mut file =
            options.create(true).read(true).append(true).open(&path).map_err(|error| named("open", &error))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(named(
                    "open",
                    &"another gateway keeps these books: end it, or choose another folder with --data",
                ));
            }
            Err(TryLockError::Error(error)) => return Err(named("lock", &error)),
        }
        let mut text = vec![];
        file.read_to_end(&mut text).map_err(|error| named("read", &error))?;
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let cut = || -> io::Result<()> {
            file.set_len(whole as u64)?;
            (&file).seek(SeekFrom::End(0)).map(drop)
        };
        cut().map_err(|error| named("mend the end of", &error))?;
        let mut books = Self {
            file,
            keys: HashMap::new(),
            closed: HashSet::new(),
            charges: BTreeMap::new(),
            refunds: BTreeMap::new(),
            shipments: BTreeMap::new(),
            messages: BTreeMap::new(),
            refunded: HashSet::new(),
        };
        for (nth, line) in text[..whole].split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).enumerate() {
            let entry = serde_json::from_slice(line).map_err(|error| {
                named("read", &format!("line {}: {error}; move the file away to begin anew", nth + 1))
            })?;
            books.take(entry);
        }
        Ok(books)
    }

    /// Carries out what is asked under `key`, once. `declined` says what becomes of a charge that is new.
    ///
    /// # Errors
    /// It cannot be written down, and is not done.
    pub(crate) fn handle(&mut self, key: &str, asked: Asked, declined: bool) -> io::Result<Answer> {
        if let Some((before, answer)) = self.keys.get(key) {
            return Ok(if *before == asked { answer.clone() } else { Answer::OtherContents });
        }
        if self.closed.contains(key) {
            return Ok(Answer::Closed);
        }
        let key = key.to_owned();
        let entry = match asked {
            Asked::Charge(asked) if declined => Entry::Declined { key: key.clone(), asked },
            Asked::Charge(ToCharge { order, cents }) => {
                let id = format!("charge-{}", self.charges.len() + 1);
                Entry::Charged { key: key.clone(), charge: Charge { id, order, cents } }
            }
            Asked::Refund(ToRefund { charge }) => {
                let Some(charged) = self.charge(&charge) else { return Ok(Answer::Missing(charge)) };
                if self.refunded.contains(&charge) {
                    return Ok(Answer::RefundedBefore);
                }
                let (id, order) = (format!("refund-{}", self.refunds.len() + 1), charged.order.clone());
                let refund = Refund { id, cents: charged.cents, charge, order };
                Entry::Refunded { key: key.clone(), refund }
            }
            Asked::Ship(ToShip { order }) => {
                let id = format!("shipment-{}", self.shipments.len() + 1);
                Entry::Shipped { key: key.clone(), shipment: Shipment { id, order, cancelled: false } }
            }
            Asked::CancelShipment(id) => {
                if number(&id).is_none_or(|number| !self.shipments.contains_key(&number)) {
                    return Ok(Answer::Missing(id));
                }
                Entry::ShipmentCancelled { key: key.clone(), id }
            }
            Asked::Send(ToSend { customer, order, text }) => {
                let id = format!("message-{}", self.messages.len() + 1);
                Entry::Sent { key: key.clone(), message: Message { id, customer, order, text } }
            }
        };
        self.write(entry)?;
        Ok(self.keys.get(&key).map_or(Answer::Closed, |(_, answer)| answer.clone()))
    }

    /// What became of the key of a charge: none if it was declined. If nothing became of it, nothing will.
    ///
    /// # Errors
    /// That nothing will cannot be written down.
    pub(crate) fn by_key(&mut self, key: &str) -> io::Result<Option<Found>> {
        match self.keys.get(key) {
            Some((_, Answer::Charged(charge))) => return Ok(Some(Found { charge: Some(charge.clone()) })),
            Some((_, Answer::Declined)) => return Ok(None),
            Some(_) => {}
            None if self.closed.contains(key) => {}
            None => self.write(Entry::Closed { key: key.into() })?,
        }
        Ok(Some(Found { charge: None }))
    }

    /// All that was done; `calls` goes along.
    pub(crate) fn ledger(&self, calls: u64) -> Ledger {
        Ledger {
            charges: self.charges.values().cloned().collect(),
            refunds: self.refunds.values().cloned().collect(),
            shipments: self.shipments.values().cloned().collect(),
            messages: self.messages.values().cloned().collect(),
            charged_cents: self.charges.values().map(|charge| charge.cents).sum(),
            refunded_cents: self.refunds.values().map(|refund| refund.cents).sum(),
            calls,
        }
    }

    fn charge(&self, id: &str) -> Option<&Charge> {
        self.charges.get(&number(id)?).filter(|charge| charge.id == id)
    }

    /// Writes the line whole, then takes it in. What is with the system survives this process.
    fn write(&mut self, entry: Entry) -> io::Result<()> {
        let length = self.file.metadata()?.len();
        let mut line = serde_json::to_vec(&entry)?;
        line.push(b'\n');
        if let Err(error) = self.file.write_all(&line).and_then(|()| self.file.flush()) {
            // Half a line must not stand before the next one.
            self.file.set_len(length)?;
            return Err(error);
        }
        self.take(entry);
        Ok(())
    }

    fn take(&mut self, entry: Entry) {
        match entry {
            Entry::Charged { key, charge } => {
                let asked = Asked::Charge(ToCharge { order: charge.order.clone(), cents: charge.cents });
                self.keys.insert(key, (asked, Answer::Charged(charge.clone())));
                self.charges.insert(number(&charge.id).unwrap_or_default(), charge);
            }
            Entry::Declined { key, asked } => {
                self.keys.insert(key, (Asked::Charge(asked), Answer::Declined));
            }
            Entry::Closed { key } => {
                self.closed.insert(key);
            }
            Entry::Refunded { key, refund } => {
                let asked = Asked::Refund(ToRefund { charge: refund.charge.clone() });
                self.keys.insert(key, (asked, Answer::Refunded(refund.clone())));
                self.refunded.insert(refund.charge.clone());
                self.refunds.insert(number(&refund.id).unwrap_or_default(), refund);
            }
            Entry::Shipped { key, shipment } => {
                let asked = Asked::Ship(ToShip { order: shipment.order.clone() });
                self.keys.insert(key, (asked, Answer::Shipped(shipment.clone())));
                self.shipments.insert(number(&shipment.id).unwrap_or_default(), shipment);
            }
            Entry::ShipmentCancelled { key, id } => {
                let shipment = number(&id).and_then(|number| self.shipments.get_mut(&number));
                if let Some(shipment) = shipment {
                    shipment.cancelled = true;
                    self.keys.insert(key, (Asked::CancelShipment(id), Answer::Shipped(shipment.clone())));
                }
            }
            Entry::Sent { key, message } => {
                let Message { id, customer, order, text } = message.clone();
                self.messages.insert(number(&id).unwrap_or_default(), message.clone());
                self.keys.insert(key, (Asked::Send(ToSend { customer, order, text }), Answer::Sent(message)));
            }
        }
    }
}

/// The number in an id.
fn number(id: &str) -> Option<u64> {
    id.split_once('-')?.1.parse().ok()
}
