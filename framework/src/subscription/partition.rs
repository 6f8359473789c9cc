//! Which partition of a follower a key belongs to.

use sha2::{Digest, Sha256};

/// The partition of `key`, 1 to `partitions`. Stored checkpoints rest on it, so it is fixed for ever, and the same in SQL
/// (`annals.partition_of`): the first four bytes of the key's SHA-256, as an unsigned number, modulo the partitions, plus 1.
pub(crate) fn partition_of(key: &str, partitions: i32) -> i32 {
    if partitions <= 1 {
        return 1;
    }
    let digest = Sha256::digest(key);
    let number = digest.iter().take(4).fold(0_u32, |number, byte| (number << 8) | u32::from(*byte));
    (number % partitions.unsigned_abs()) as i32 + 1
}

#[cfg(test)]
mod tests {
    use super::partition_of;

    #[test]
    fn golden_vectors_stay_as_they_are() {
        let found = |partitions| {
            ["", "order-1", "order-2", "ada", "ö🦀", "order-0198c7d2"].map(|key| partition_of(key, partitions))
        };

        assert_eq!(found(1), [1; 6]);
        assert_eq!(found(4), [3, 2, 3, 2, 3, 3]);
        assert_eq!(found(1_000), [611, 66, 111, 382, 43, 419]);
    }
}
