//! Random appends, drains and reopens against a plain list.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Step {
    Append { records: u32 },
    Drain { bytes: usize },
    PeekOnly,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1_u32..40).prop_map(|records| Step::Append { records }),
        3 => (1_usize..5_000).prop_map(|bytes| Step::Drain { bytes }),
        1 => Just(Step::PeekOnly),
        1 => Just(Step::Reopen),
    ]
}

async fn follows_the_model(steps: Vec<Step>) {
    let folder = tempfile::tempdir().expect("a folder");
    let little = QueueConfig { bytes_max: 12_000, ..config() };
    let opened =
        async || SpoolQueue::open(Arc::new(RealFs), folder.path().to_path_buf(), little.clone()).await;
    let mut queue = opened().await;
    let (mut model, mut next) = (VecDeque::new(), 0);
    for step in steps {
        match step {
            Step::Append { records } => {
                let entries: Vec<Entry> = (next..next + records).map(entry).collect();
                let fits =
                    queue.status().bytes + entries.iter().map(Entry::stored_bytes).sum::<u64>() <= 12_000;
                assert_eq!(queue.append(&entries).await.is_ok(), fits);
                if fits {
                    model.extend(next..next + records);
                }
                next += records;
            }
            Step::Drain { bytes } => {
                let peeked = queue.peek(bytes).await.expect("peeked");
                let numbers: Vec<u32> = peeked.entries.iter().map(number).collect();
                assert_eq!(numbers.is_empty(), model.is_empty());
                assert_eq!(numbers, model.drain(..numbers.len()).collect::<Vec<_>>());
                queue.advance(peeked).await.expect("advanced");
            }
            Step::PeekOnly => drop(queue.peek(1_000).await.expect("peeked")),
            Step::Reopen => {
                queue.close();
                drop(queue);
                queue = opened().await;
            }
        }
        let status = queue.status();
        assert_eq!((status.records, status.missing), (model.len() as u64, 0));
        assert_eq!(status.bytes, model.iter().map(|number| entry(*number).stored_bytes()).sum::<u64>());
        assert_eq!(status.oldest, model.iter().map(|number| entry(*number).arrival_time).min());
    }
    assert_eq!(drain_all(&queue).await, Vec::from(model));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_order_of_steps_holds_what_a_list_would(steps in prop::collection::vec(step(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(follows_the_model(steps));
    }
}
