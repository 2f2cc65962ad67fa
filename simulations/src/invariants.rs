//! The invariants of the mesh, one a file, named as the design names them.

use std::sync::Arc;

pub(crate) mod audit;
pub(crate) mod claims;
pub(crate) mod commitments;
pub(crate) mod contracts;
pub(crate) mod copies;
pub(crate) mod course;
pub(crate) mod events;
pub(crate) mod finality;
pub(crate) mod gateway;
pub(crate) mod giving;
pub(crate) mod instances;
pub(crate) mod limits;
pub(crate) mod liveness;
pub(crate) mod outbox;
pub(crate) mod patients;
pub(crate) mod prefetch;
pub(crate) mod promises;
pub(crate) mod purges;
pub(crate) mod replicas;
pub(crate) mod retrieval;
pub(crate) mod secrecy;
pub(crate) mod senders;
pub(crate) mod steps;
pub(crate) mod time;
pub(crate) mod tokens;

use crate::plan::Plan;
use crate::world::World;

/// Zones in which images are safe, where there are so many.
pub(crate) const ZONES: usize = 2;

/// The checks that watch a run continuously.
pub(crate) struct Watch {
    pub(crate) promises: promises::Promises,
    pub(crate) replicas: replicas::Replicas,
    pub(crate) instances: instances::Instances,
    pub(crate) finality: finality::Finality,
    pub(crate) audit: audit::Audit,
    pub(crate) events: events::Events,
    pub(crate) course: course::Course,
    pub(crate) outbox: outbox::Outbox,
    pub(crate) steps: steps::Steps,
    pub(crate) prefetch: prefetch::Prefetch,
    pub(crate) purges: purges::Purges,
    pub(crate) commitments: commitments::Commitments,
    pub(crate) giving: giving::Giving,
    pub(crate) contracts: contracts::Contracts,
    pub(crate) senders: senders::Senders,
    pub(crate) gateway: gateway::Gateway,
}

impl Watch {
    pub(crate) fn new(world: Arc<World>, plan: &Plan) -> Self {
        let seed = plan.seed;
        Self {
            promises: promises::Promises::new(Arc::clone(&world)),
            replicas: replicas::Replicas::new(Arc::clone(&world)),
            instances: instances::Instances::new(Arc::clone(&world), seed),
            finality: finality::Finality::new(Arc::clone(&world), seed),
            audit: audit::Audit::new(Arc::clone(&world)),
            events: events::Events::new(Arc::clone(&world), plan.is_upgraded()),
            outbox: outbox::Outbox::new(Arc::clone(&world), seed),
            steps: steps::Steps::new(Arc::clone(&world), seed),
            prefetch: prefetch::Prefetch::new(Arc::clone(&world)),
            purges: purges::Purges::new(Arc::clone(&world)),
            commitments: commitments::Commitments::new(Arc::clone(&world)),
            giving: giving::Giving::new(Arc::clone(&world), seed),
            contracts: contracts::Contracts::new(Arc::clone(&world)),
            senders: senders::Senders::new(Arc::clone(&world)),
            gateway: gateway::Gateway::new(Arc::clone(&world), seed),
            course: course::Course::new(world, seed),
        }
    }
}
