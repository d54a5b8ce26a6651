// Maps tumour on slides in shards, each a process, and joins their records:
//
//     nextflow run main.nf --slides "$PWD/slides" --out "$PWD/maps" --shards 4
//
// Paths are absolute, as every process has a folder of its own. Not run by the tests of wsiseg.

params.slides = "${launchDir}/slides"
params.model = 'default'
params.out = "${launchDir}/maps"
params.shards = 4

process shard {
    cpus 2
    errorStrategy 'retry'
    maxRetries 2

    input:
    val number

    output:
    val number

    script:
    """
    WSISEG_CORES=${task.cpus} wsiseg predict '${params.slides}' --model '${params.model}' --out '${params.out}' \
        --shard ${number}/${params.shards}
    """
}

process merge {
    input:
    val numbers

    script:
    """
    wsiseg predict --merge '${params.out}'
    """
}

workflow {
    merge(shard(Channel.of(1..(params.shards as int))).collect())
}
