use crate::support::{heard, job};

#[tokio::test]
async fn a_job_arrives_unchanged_in_process() {
    let (publisher, consumer) = queue::in_process(8);
    crate::broker::a_rung_job_arrives(publisher, consumer).await;
}

#[tokio::test]
async fn a_full_in_process_queue_drops_and_counts_doorbells() {
    let (publisher, mut consumer) = queue::in_process(2);
    let jobs = [job(), job(), job()];
    jobs.iter().for_each(|job| publisher.ring(job.clone()));
    assert_eq!((publisher.stats().published, publisher.stats().dropped), (2, 1));
    assert_eq!(heard(&mut consumer).await.job, jobs[0]);
    assert_eq!(consumer.try_next().unwrap().job, jobs[1]);
    assert!(consumer.try_next().is_none());
}

#[tokio::test]
async fn the_queue_shuts_down_with_its_last_publisher() {
    let (publisher, mut consumer) = queue::in_process(2);
    let another = publisher.clone();
    publisher.ring(job());
    drop(publisher);
    another.ring(job());
    drop(another);
    heard(&mut consumer).await.ack();
    heard(&mut consumer).await.ack();
    assert!(consumer.next().await.is_none());
}

#[tokio::test]
async fn doorbells_rung_after_the_consumer_is_dropped_are_dropped() {
    let (publisher, consumer) = queue::in_process(2);
    drop(consumer);
    publisher.closed().await;
    publisher.ring(job());
    assert_eq!(publisher.stats().dropped, 1);
}
