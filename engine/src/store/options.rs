//! How RocksDB is set up: every memory and file bound in one place.
//!
//! Memory: the block cache (which holds index and filter blocks too), the memtables, and some MiB. Files: at
//! most [`StoreOptions::open_files_max`] open. Log: [`WAL_BYTES_MAX`], which also bounds recovery.

use godwit_core::store::Family;
use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, ColumnFamilyDescriptor, DBCompressionType, DBRecoveryMode,
    Options, SliceTransform,
};

use super::RECORD_PREFIX_BYTES;

/// Beyond so many bytes of write-ahead log, the families that hold it back are flushed.
const WAL_BYTES_MAX: u64 = 256 * MIB as u64;
/// Flushes and compactions at the same time: they share the cores with requests.
const BACKGROUND_JOBS_MAX: i32 = 2;
/// Memtables of a family, the one being written included, before writes wait for flushes.
const MEMTABLES_MAX: i32 = 3;
/// Table files and logs are synced in the background every so many bytes, so that no sync is a long one.
const BYTES_PER_SYNC: u64 = MIB as u64;
/// RocksDB's own text logs.
const INFO_LOGS_MAX: usize = 5;
const INFO_LOG_BYTES_MAX: usize = 16 * MIB;
/// About 1 % of lookups of what is absent read a block in vain.
const BLOOM_BITS: f64 = 10.0;
/// Of a memtable's bytes, those of its bloom, which come on top.
const MEMTABLE_BLOOM_SHARE: f64 = 0.05;
/// Larger blocks than RocksDB's 4 KiB compress better and need a smaller index.
const BLOCK_BYTES: usize = 8 * 1024;

const MIB: usize = 1024 * 1024;

/// What an operator may choose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreOptions {
    /// Bytes of the cache for blocks, indexes and filters, shared by all families. Default 256 MiB.
    pub block_cache_bytes: usize,
    /// Bytes of memtables, over all families, at which flushing begins. Default 128 MiB; those being flushed
    /// come on top, up to as much again.
    pub write_buffer_bytes: usize,
    /// Files that RocksDB holds open, at least 64. Default 512, which leaves room for sockets below the usual
    /// limit of 1,024.
    pub open_files_max: u16,
    /// When a commit is acknowledged. Default [`Durability::Fsync`].
    pub durability: Durability,
}

/// When a commit is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// After it is synced: what was acknowledged survives a power cut.
    #[default]
    Fsync,
    /// After it is handed to the operating system, and synced soon after: what was acknowledged survives the end of
    /// the process however it comes, but a power cut or a crash of the system may take the last of it.
    Os,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            block_cache_bytes: 256 * MIB,
            write_buffer_bytes: 128 * MIB,
            open_files_max: 512,
            durability: Durability::Fsync,
        }
    }
}

/// Options of the whole instance, for a log that was written with some durability. With `create`, a missing instance
/// and missing families are created.
pub(super) fn database(options: &StoreOptions, create: bool, written_with: Durability) -> Options {
    let mut database = Options::default();
    database.create_if_missing(create);
    database.create_missing_column_families(create);
    database.set_paranoid_checks(true);
    // The header of `store` says why.
    database.set_wal_recovery_mode(match written_with {
        Durability::Fsync => DBRecoveryMode::TolerateCorruptedTailRecords,
        Durability::Os => DBRecoveryMode::PointInTime,
    });
    database.set_track_and_verify_wals_in_manifest(true);
    database.set_max_total_wal_size(WAL_BYTES_MAX);
    database.set_db_write_buffer_size(options.write_buffer_bytes);
    database.set_max_open_files(i32::from(options.open_files_max.max(64)));
    database.set_max_background_jobs(BACKGROUND_JOBS_MAX);
    database.set_bytes_per_sync(BYTES_PER_SYNC);
    database.set_keep_log_file_num(INFO_LOGS_MAX);
    database.set_max_log_file_size(INFO_LOG_BYTES_MAX);
    database
}

/// Families with their options.
pub(super) fn families(
    which: &[Family],
    options: &StoreOptions,
    cache: &Cache,
) -> Vec<ColumnFamilyDescriptor> {
    let described =
        |&family| ColumnFamilyDescriptor::new(Family::name(family), of_family(family, options, cache));
    which.iter().map(described).collect()
}

/// The options of one family.
pub(super) fn of_family(family: Family, options: &StoreOptions, cache: &Cache) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_block_size(BLOCK_BYTES);
    // Counted against the cache, so that memory does not grow with the data.
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    // Whole filters are about a MiB a file: where the cache is small, each would push out all else and be read again for
    // every lookup. So both are cut into pieces of a block, and only what leads to the pieces stays.
    table.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
    table.set_partition_filters(true);
    table.set_pin_top_level_index_and_filter(true);

    let mut result = Options::default();
    result.set_compression_type(DBCompressionType::Lz4);
    result.set_bottommost_compression_type(DBCompressionType::Zstd);
    result.set_max_write_buffer_number(MEMTABLES_MAX);
    let memtable_share = match family {
        Family::Rows => {
            result.set_prefix_extractor(SliceTransform::create_fixed_prefix(RECORD_PREFIX_BYTES));
            // Of records, for their ranges, and of rows: most members that are added are not there, and are looked up.
            table.set_bloom_filter(BLOOM_BITS, false);
            // The same for what is not in a file yet: most records that are looked for lie in one or the other.
            result.set_memtable_prefix_bloom_ratio(MEMTABLE_BLOOM_SHARE);
            result.set_memtable_whole_key_filtering(true);
            4
        }
        // Every commit that touches a record without rows asks for its mark in vain; fields without a note and
        // requests with a new key are the rule too.
        Family::Keys | Family::Fields | Family::Requests | Family::Staged => {
            table.set_bloom_filter(BLOOM_BITS, false);
            16
        }
        // Members that are not in an order yet are looked up in vain, once each.
        Family::Derived => {
            table.set_bloom_filter(BLOOM_BITS, false);
            // Read at a dozen places for each change, and made again from rows if need be: speed comes before size.
            result.set_bottommost_compression_type(DBCompressionType::Lz4);
            8
        }
        // What is asked for here is there: blooms would only cost.
        Family::Log => 4,
        Family::Meta => 16,
    };
    result.set_write_buffer_size((options.write_buffer_bytes / memtable_share).max(MIB));
    result.set_block_based_table_factory(&table);
    result
}
