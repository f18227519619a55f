//! What a shard tells its node's control about the slots it has a part in, for the cluster map.

use crate::proto::map::GroupSet;
use crate::types::NodeId;

/// How things stand at one shard, under one map version. Reports of all shards of a node are put together: a group is
/// in sync, or confirmed, if it is on every shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardReport {
    /// The map version it is about.
    pub map: u32,
    /// Groups of which this node is a learner and holds every slot of this shard as a member would.
    pub synced: GroupSet,
    /// Groups whose past member sets are needed no more for this shard's slots of the addresses this node owns:
    /// everything recovered or released is held by a commit set of the present members.
    pub confirmed: GroupSet,
    /// Groups in which a slot owned here has waited for a commit for TANDEM_DEAD_AFTER.
    pub blocked: GroupSet,
    /// Members that the owner here has given up, by group: they must be dropped and brought in again.
    pub lost: Vec<(NodeId, GroupSet)>,
    /// Slots owned here that are still being recovered.
    pub recovering: u32,
    /// Slots recovered here although no complete commit set was left.
    pub lossy: u32,
    /// Slots of this shard that this node is a learner of, and how many of them are in sync.
    pub learning: (u32, u32),
    /// Replies owned here that wait for a commit or the kernel.
    pub waiting: u64,
}
