//! The job message, a doorbell for dispatchers. It carries no payload and no secret. A message with one job
//! is smaller than 1 KiB.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{AttemptNumber, DeliveryId, Destination, OrgId, Traceparent};

/// A request for an attempt of a delivery. Losing or repeating one is harmless.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// The delivery.
    pub delivery_id: DeliveryId,
    /// The number of the attempt, counted from 1.
    pub attempt: AttemptNumber,
    /// The delivery's destination. If it differs from the row's, the job claims nothing and the relay finds
    /// the delivery.
    pub destination: Destination,
    /// The payload's length in bytes. Absent in messages of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload_size: Option<u64>,
    /// The delivery's organization.
    pub org_id: OrgId,
    /// The API request that asked for the delivery; also in the attempt's log line.
    pub request_id: String,
    /// The doorbell's position in a trace, if it belongs to one. Absent in messages of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<Traceparent>,
}

/// Why a job message can't be decoded.
#[derive(Debug, Error)]
pub enum JobError {
    /// Not JSON, or a field is missing or of the wrong type.
    #[error("not a job message: {0}")]
    Malformed(#[from] serde_json::Error),
    /// An attempt number below 1.
    #[error("job message for attempt {0}, attempts count from 1")]
    Attempt(AttemptNumber),
    /// No jobs, or more than [`Job::MOST`].
    #[error("job message with {0} jobs, expected 1 to {most}", most = Job::MOST)]
    Count(usize),
    /// A message version that this program does not know.
    #[error("job message of version {0}, this program knows versions 1 and 2")]
    Version(u32),
}

/// A message with a single job.
#[derive(Serialize)]
struct Version1<'a> {
    version: u32,
    #[serde(flatten)]
    job: &'a Job,
}

/// A message with several jobs.
#[derive(Serialize)]
struct Version2<'a> {
    version: u32,
    jobs: &'a [Job],
}

impl Job {
    /// The most jobs in one message.
    pub const MOST: usize = 64;

    /// Encodes a message with at most [`Job::MOST`] jobs as JSON. A single job is encoded in version 1, which
    /// older programs also understand.
    pub fn encode(jobs: &[Job]) -> Vec<u8> {
        let message = match jobs {
            [job] => serde_json::to_vec(&Version1 { version: 1, job }),
            jobs => serde_json::to_vec(&Version2 { version: 2, jobs }),
        };
        message.expect("a job is serializable as JSON")
    }

    /// Decodes a message. The version is checked before the other fields.
    pub fn decode(message: &[u8]) -> Result<Vec<Job>, JobError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        #[derive(Deserialize)]
        struct Several {
            jobs: Vec<Job>,
        }
        let Versioned { version } = serde_json::from_slice(message)?;
        let jobs = match version {
            1 => vec![serde_json::from_slice(message)?],
            2 => serde_json::from_slice::<Several>(message)?.jobs,
            other => return Err(JobError::Version(other)),
        };
        if jobs.is_empty() || jobs.len() > Job::MOST {
            return Err(JobError::Count(jobs.len()));
        }
        match jobs.iter().find(|job| job.attempt < 1) {
            Some(job) => Err(JobError::Attempt(job.attempt)),
            None => Ok(jobs),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The frozen formats: messages must stay decodable for as long as a broker may hold one.
    const VERSION_1: &str = include_str!("../tests/fixtures/job-v1.json");
    const VERSION_2: &str = include_str!("../tests/fixtures/job-v2.json");

    fn job() -> Job {
        Job {
            delivery_id: "018bab7f-2c60-7d3a-8f00-0123456789ab".parse().unwrap(),
            attempt: 1,
            destination: Destination::from(0x3276_d403_185d_4a1a),
            payload_size: None,
            org_id: "018bab7f-2c60-7d3a-8f00-ba9876543210".parse().unwrap(),
            request_id: "req-1".to_owned(),
            traceparent: None,
        }
    }

    fn jobs() -> [Job; 2] {
        let second = "018bab7f-2c60-7d3a-8f00-0123456789ac".parse().unwrap();
        [
            job(),
            Job { delivery_id: second, payload_size: Some(1024), request_id: "req-2".to_owned(), ..job() },
        ]
    }

    #[test]
    fn version_1_is_frozen() {
        assert_eq!(String::from_utf8(Job::encode(&[job()])).unwrap(), VERSION_1.trim_end());
        assert_eq!(Job::decode(VERSION_1.as_bytes()).unwrap(), [job()]);
    }

    #[test]
    fn version_2_is_frozen() {
        assert_eq!(String::from_utf8(Job::encode(&jobs())).unwrap(), VERSION_2.trim_end());
        assert_eq!(Job::decode(VERSION_2.as_bytes()).unwrap(), jobs());
    }

    #[test]
    fn the_payload_size_and_the_traceparent_are_encoded() {
        let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse().unwrap();
        let job = Job { payload_size: Some(1024), traceparent: Some(traceparent), ..job() };
        assert_eq!(Job::decode(&Job::encode(std::slice::from_ref(&job))).unwrap(), [job]);
    }

    #[test]
    fn an_unknown_version_or_a_malformed_message_has_its_own_error() {
        assert!(matches!(Job::decode(br#"{"version": 3}"#), Err(JobError::Version(3))));
        assert!(matches!(Job::decode(br#"{"version": 1}"#), Err(JobError::Malformed(_))));
        assert!(matches!(Job::decode(br#"{"version": 2}"#), Err(JobError::Malformed(_))));
        assert!(matches!(Job::decode(b"\xff"), Err(JobError::Malformed(_))));
        for frozen in [VERSION_1, VERSION_2] {
            let zeroth = frozen.replacen(r#""attempt":1"#, r#""attempt":0"#, 1);
            assert!(matches!(Job::decode(zeroth.as_bytes()), Err(JobError::Attempt(0))));
        }
    }

    #[test]
    fn a_message_has_at_least_one_job_and_not_too_many() {
        assert!(matches!(Job::decode(br#"{"version": 2, "jobs": []}"#), Err(JobError::Count(0))));
        let most = vec![job(); Job::MOST];
        assert_eq!(Job::decode(&Job::encode(&most)).unwrap(), most);
        let more = vec![job(); Job::MOST + 1];
        assert!(matches!(Job::decode(&Job::encode(&more)), Err(JobError::Count(65))));
    }
}
