-- Enter migration here

-- Row-level security stays on when a day is retired.
--!include access/grant_heartbeat_columns.sql
--!include partitions/retire_partition.sql
--!include import/describe_source.sql
--!include access/check_readers.sql
--!include access/readers.policies.sql
--!include setup/grants.sql
