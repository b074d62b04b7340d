//! The bytes of a batch, the unit that Fluvio stores and answers with: written from records, and read back checked.
//!
//! Guarantee: a batch that is cut short, changed or incomplete is told apart from a whole one. The published client
//! takes a cut batch for an empty one and goes on behind it; that is how it loses records.
//! Layout after the header: `count i32`, then records, each `length, 0, 0, index, no key, length, bytes, 0`, where
//! numbers without a type are zigzag varints.

use bytes::Bytes;
use fluvio::dataplane::Encoder;
use fluvio::dataplane::record::{BATCH_HEADER_SIZE, Batch, RawRecords};

use crate::event::UtcMillis;

/// Bytes of a record beside its own, at most: two lengths, two bytes, an index, a key's absence and a header count.
const RECORD_OVERHEAD_MAX: usize = 5 + 2 + 5 + 1 + 5 + 1;
/// Bits of the attributes that name a compression; this log writes none and reads none.
const COMPRESSION_MASK: i16 = 0x07;

/// Returns what a record takes in a batch, at most.
pub(super) fn stored_bytes_max(record: &Bytes) -> usize {
    record.len() + RECORD_OVERHEAD_MAX
}

/// Builds batches of at most `batch_bytes_max` from records in order; a larger record gets a batch of its own.
pub(super) fn batches_of<'a>(
    records: impl Iterator<Item = &'a Bytes>,
    batch_bytes_max: usize,
    now: UtcMillis,
) -> Vec<Batch<RawRecords>> {
    let (mut batches, mut open, mut count) = (Vec::new(), Vec::new(), 0_i32);
    for record in records {
        if count > 0 && open.len() + stored_bytes_max(record) > batch_bytes_max {
            batches.push(finish(std::mem::take(&mut open), count, now));
            count = 0;
        }
        if count == 0 {
            open.extend_from_slice(&[0; 4]); // the count, known at the end
        }
        put_record(&mut open, count, record);
        count += 1;
    }
    if count > 0 {
        batches.push(finish(open, count, now));
    }
    batches
}

fn finish(mut bytes: Vec<u8>, count: i32, now: UtcMillis) -> Batch<RawRecords> {
    bytes[..4].copy_from_slice(&count.to_be_bytes());
    let mut batch = Batch::<RawRecords>::default();
    batch.batch_len = (BATCH_HEADER_SIZE + bytes.len()) as i32; // bounded by the batch size
    batch.header.last_offset_delta = count - 1;
    batch.header.first_timestamp = now.epoch_ms();
    batch.header.max_time_stamp = now.epoch_ms();
    *batch.mut_records() = RawRecords(bytes.into());
    batch
}

fn put_record(out: &mut Vec<u8>, index: i32, record: &[u8]) {
    let inner = 2 + varint_bytes(i64::from(index)) + 1 + varint_bytes(record.len() as i64) + record.len() + 1;
    put_varint(out, inner as i64);
    out.extend_from_slice(&[0, 0]); // attributes; time since the batch's
    put_varint(out, i64::from(index));
    out.push(0); // no key
    put_varint(out, record.len() as i64);
    out.extend_from_slice(record);
    out.push(0); // no headers
}

fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)) as u64
}

fn put_varint(out: &mut Vec<u8>, number: i64) {
    let mut rest = zigzag(number);
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

fn varint_bytes(number: i64) -> usize {
    (64 - zigzag(number).max(1).leading_zeros() as usize).div_ceil(7)
}

/// Returns whether all bytes of the batch arrived.
pub(super) fn is_whole(batch: &Batch<RawRecords>) -> bool {
    usize::try_from(batch.batch_len()).is_ok_and(|bytes| bytes == BATCH_HEADER_SIZE + batch.records().0.len())
}

/// Returns the records of a whole batch; they share its memory.
///
/// # Errors
/// What is wrong with the bytes.
pub(super) fn records_of(batch: &Batch<RawRecords>) -> Result<Vec<Bytes>, String> {
    let header = batch.get_header();
    if header.attributes & COMPRESSION_MASK != 0 {
        return Err(
            "the batch is compressed, which this log never writes; who else writes to this topic?".to_owned()
        );
    }
    if header.has_schema() {
        return Err(
            "the batch has a schema, which this log never writes; who else writes to this topic?".to_owned()
        );
    }
    let bytes = &batch.records().0;
    let found = checksum(batch)?;
    if found != header.crc {
        return Err(format!("the batch's checksum is {:08x}, its bytes give {found:08x}", header.crc));
    }
    let mut input = Input { bytes, at: 0 };
    let count = input.count()?;
    if count != batch.records_len() {
        return Err(format!("the batch holds {count} records and spans {} offsets", batch.records_len()));
    }
    let records = (0..count).map(|_| input.record()).collect::<Result<Vec<_>, _>>()?;
    if input.at != bytes.len() {
        return Err(format!("{} bytes follow the batch's last record", bytes.len() - input.at));
    }
    Ok(records)
}

/// CRC-32C over the header from its attributes on, and the records.
pub(super) fn checksum(batch: &Batch<RawRecords>) -> Result<u32, String> {
    let header = batch.get_header();
    let mut fields = Vec::with_capacity(40);
    let mut put = |field: &dyn Fn(&mut Vec<u8>) -> std::io::Result<()>| field(&mut fields);
    put(&|out| header.attributes.encode(out, 0))
        .and_then(|()| put(&|out| header.last_offset_delta.encode(out, 0)))
        .and_then(|()| put(&|out| header.first_timestamp.encode(out, 0)))
        .and_then(|()| put(&|out| header.max_time_stamp.encode(out, 0)))
        .and_then(|()| put(&|out| header.producer_id.encode(out, 0)))
        .and_then(|()| put(&|out| header.producer_epoch.encode(out, 0)))
        .and_then(|()| put(&|out| header.first_sequence.encode(out, 0)))
        .map_err(|error| error.to_string())?;
    Ok(crc32c::crc32c_append(crc32c::crc32c(&fields), &batch.records().0))
}

/// Reads a batch's records front to back.
struct Input<'a> {
    bytes: &'a Bytes,
    at: usize,
}

impl Input<'_> {
    fn take(&mut self, count: usize) -> Result<Bytes, String> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or_else(|| "the batch ends inside a record".to_owned())?;
        let taken = self.bytes.slice(self.at..end);
        self.at = end;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, String> {
        let byte =
            self.bytes.get(self.at).copied().ok_or_else(|| "the batch ends inside a record".to_owned())?;
        self.at += 1;
        Ok(byte)
    }

    fn count(&mut self) -> Result<usize, String> {
        let bytes = self.take(4)?;
        let count = i32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        usize::try_from(count).map_err(|_| format!("the batch says it holds {count} records"))
    }

    fn varint(&mut self) -> Result<i64, String> {
        let (mut number, mut shift) = (0_u64, 0);
        loop {
            let byte = self.byte()?;
            if shift > 63 {
                return Err("a number in the batch is too long".to_owned());
            }
            number |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                return Ok((number >> 1) as i64 ^ -((number & 1) as i64));
            }
        }
    }

    fn sized(&mut self) -> Result<Bytes, String> {
        let length = self.varint()?;
        let length = usize::try_from(length).map_err(|_| format!("a length in the batch is {length}"))?;
        self.take(length)
    }

    /// Reads one record; a key or headers, which this log never writes, are passed over.
    fn record(&mut self) -> Result<Bytes, String> {
        let length = self.varint()?;
        let end = usize::try_from(length).ok().and_then(|length| self.at.checked_add(length));
        self.byte()?; // attributes
        self.varint()?; // time since the batch's
        self.varint()?; // index
        if self.byte()? != 0 {
            self.sized()?; // key
        }
        let value = self.sized()?;
        self.varint()?; // headers
        if Some(self.at) == end {
            Ok(value)
        } else {
            Err("a record's length is not that of its fields".to_owned())
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use fluvio::dataplane::Decoder;
    use fluvio::dataplane::record::{Record, RecordSet};
    use proptest::prelude::*;

    use super::*;

    fn values(texts: &[&str]) -> Vec<Bytes> {
        texts.iter().map(|text| Bytes::from(text.to_string())).collect()
    }

    /// Sends batches over the wire and back, cut to `bytes_max` as a server cuts an answer.
    pub(in super::super) fn over_the_wire(
        batches: Vec<Batch<RawRecords>>,
        bytes_max: usize,
    ) -> Vec<Batch<RawRecords>> {
        let mut body = Vec::new();
        for batch in batches {
            batch.encode(&mut body, 0).expect("encoded");
        }
        body.truncate(bytes_max);
        let mut bytes = (body.len() as i32).to_be_bytes().to_vec();
        bytes.extend(body);
        RecordSet::<RawRecords>::decode_from(&mut &*bytes, 0).expect("decoded").batches
    }

    #[test]
    fn the_bytes_are_those_of_fluvios_own_encoder() {
        for texts in [
            vec!["a"],
            vec![""],
            vec!["one", "", "three and more than sixty-four bytes of text, which takes two"],
        ] {
            let ours = batches_of(values(&texts).iter(), 1 << 20, UtcMillis::clamped(5));
            let records: Vec<Record> = texts.iter().map(|text| Record::new(text.to_string())).collect();
            let mut theirs = Vec::new();
            Batch::from(records).own_records().encode(&mut theirs, 0).expect("encoded");
            assert_eq!(ours.len(), 1);
            assert_eq!(ours[0].records().0, theirs, "{texts:?}");
        }
    }

    #[test]
    fn a_cut_batch_is_not_whole_and_a_changed_one_is_named() {
        let batches = batches_of(values(&["one", "two"]).iter(), 1 << 20, UtcMillis::clamped(5));
        let whole = over_the_wire(batches.clone(), usize::MAX);
        assert!(is_whole(&whole[0]));
        assert_eq!(records_of(&whole[0]).expect("read"), values(&["one", "two"]));
        let cut = over_the_wire(batches, 70);
        assert!(!is_whole(&cut[0]));

        let mut changed = whole[0].clone();
        let mut bytes = changed.records().0.to_vec();
        bytes[9] ^= 1;
        *changed.mut_records() = RawRecords(bytes.into());
        assert!(records_of(&changed).expect_err("changed").contains("checksum"));
        let mut short = whole[0].clone();
        short.header.last_offset_delta = 5;
        short.header.crc = checksum(&short).expect("computed");
        assert!(records_of(&short).expect_err("too few").contains("spans 6 offsets"));
    }

    proptest! {
        #[test]
        fn what_was_put_into_batches_comes_out_in_order(
            texts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 1..60),
            bytes_max in 30_usize..2_000,
        ) {
            let records: Vec<Bytes> = texts.into_iter().map(Bytes::from).collect();
            let batches = batches_of(records.iter(), bytes_max, UtcMillis::clamped(5));
            let mut read = Vec::new();
            for batch in over_the_wire(batches, usize::MAX) {
                prop_assert!(is_whole(&batch));
                prop_assert!(batch.records().0.len() <= bytes_max + 4 || batch.records_len() == 1);
                read.extend(records_of(&batch).expect("read"));
            }
            prop_assert_eq!(read, records);
        }

        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), count in -2_i32..50) {
            let mut batch = Batch::<RawRecords>::default();
            batch.header.last_offset_delta = count;
            *batch.mut_records() = RawRecords(bytes.into());
            batch.header.crc = checksum(&batch).expect("computed");
            let _ = records_of(&batch);
        }
    }
}
