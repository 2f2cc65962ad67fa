//! The store against crashes, damage, full disks and crowds, by its public interface.

mod coded;
mod crash;
mod damage;
mod disk_full;
mod faulty_disk;
mod fixture;
mod index_damage;
mod landing;
mod library;
mod mending;
mod purge;
mod purge_lost;
mod scrub;
mod sealed;
mod throughput;
mod writing;
