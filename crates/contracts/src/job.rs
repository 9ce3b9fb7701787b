//! The job message: a doorbell for dispatchers. It carries no payload and no secret, and stays under 1 KiB.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{AttemptNumber, DeliveryId, Destination, OrgId};

/// Says that an attempt of a delivery is wanted. Losing or repeating one does no harm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Version of this message's shape: [`Job::VERSION`].
    pub version: u32,
    /// The delivery.
    pub delivery_id: DeliveryId,
    /// The attempt wanted, counted from 1.
    pub attempt: AttemptNumber,
    /// Where it goes. With one that is not the row's the job claims nothing, and the relay finds the delivery.
    pub destination: Destination,
    /// How long its payload is, in bytes. Older versions don't say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload_size: Option<u64>,
    /// The delivery's organization.
    pub org_id: OrgId,
    /// The API request that asked for it; also in the attempt's log line.
    pub request_id: String,
}

/// Why a message is not a job this version knows.
#[derive(Debug, Error)]
pub enum JobError {
    /// Not JSON, or a field is missing or of the wrong type.
    #[error("not a job message: {0}")]
    Malformed(#[from] serde_json::Error),
    /// No attempt has that number.
    #[error("job message for attempt {0}, attempts count from 1")]
    Attempt(AttemptNumber),
    /// Made by a newer or older version.
    #[error("job message of version {0}, this program knows version {known}", known = Job::VERSION)]
    Version(u32),
}

impl Job {
    /// The version this program writes and reads.
    pub const VERSION: u32 = 1;

    /// The message's bytes, JSON.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a job has nothing that JSON cannot carry")
    }

    /// Reads a message. The version is judged before the other fields.
    pub fn decode(message: &[u8]) -> Result<Job, JobError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let Versioned { version } = serde_json::from_slice(message)?;
        if version != Job::VERSION {
            return Err(JobError::Version(version));
        }
        let job: Job = serde_json::from_slice(message)?;
        if job.attempt < 1 { Err(JobError::Attempt(job.attempt)) } else { Ok(job) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The frozen form: messages of version 1 must stay readable as long as a broker may hold one.
    const FIXTURE: &str = include_str!("../tests/fixtures/job-v1.json");

    #[test]
    fn version_1_is_frozen() {
        let job = Job {
            version: 1,
            delivery_id: "018bab7f-2c60-7d3a-8f00-0123456789ab".parse().unwrap(),
            attempt: 1,
            destination: Destination::from(0x3276_d403_185d_4a1a),
            payload_size: None,
            org_id: "018bab7f-2c60-7d3a-8f00-ba9876543210".parse().unwrap(),
            request_id: "req-1".to_owned(),
        };
        assert_eq!(String::from_utf8(job.encode()).unwrap(), FIXTURE.trim_end());
        assert_eq!(Job::decode(FIXTURE.as_bytes()).unwrap(), job);
    }

    #[test]
    fn the_payloads_size_is_carried() {
        let job = Job { payload_size: Some(1024), ..Job::decode(FIXTURE.as_bytes()).unwrap() };
        assert_eq!(Job::decode(&job.encode()).unwrap(), job);
    }

    #[test]
    fn a_message_of_another_version_or_shape_is_named() {
        assert!(matches!(Job::decode(br#"{"version": 2}"#), Err(JobError::Version(2))));
        assert!(matches!(Job::decode(br#"{"version": 1}"#), Err(JobError::Malformed(_))));
        assert!(matches!(Job::decode(b"\xff"), Err(JobError::Malformed(_))));
        let zeroth = FIXTURE.replace(r#""attempt":1"#, r#""attempt":0"#);
        assert!(matches!(Job::decode(zeroth.as_bytes()), Err(JobError::Attempt(0))));
    }
}
