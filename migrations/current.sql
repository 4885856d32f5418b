-- Enter migration here

--!include scaling/shard_map.sql

--!include setup/grants.sql
