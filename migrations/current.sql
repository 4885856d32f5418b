--!include functions/check_partitions.sql
--!include functions/confirm_archive.sql
--!include functions/content_checksum.sql
--!include grants.sql

-- Enter migration here
