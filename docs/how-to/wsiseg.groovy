// Loads what `wsiseg predict` wrote into the images of a QuPath project: outlines and, where they are, cells.
// Script editor: Run > Run for project. Objects of an earlier run are taken out first; others stay.

def maps = new File("/path/to/wsiseg-out")  // the folder of predict's --out

def file = new File(getCurrentServer().getURIs().iterator().next()).getName()
def slide = file.contains(".") ? file.take(file.lastIndexOf(".")) : file
def found = [".geojson", ".geojson.gz", ".cells.geojson.gz"].collect { new File(maps, slide + it) }.findAll { it.exists() }
if (found.isEmpty()) {
    println "${slide}: wsiseg wrote nothing for it into ${maps}"
    return
}
def ours = getAnnotationObjects().findAll { it.getMetadata().containsKey("wsiseg") }
removeObjects(ours, true)
removeObjects(getDetectionObjects().findAll { it.getMeasurements().containsKey("p(tumor)") }, true)
found.each { importObjectsFromFile(it.getPath()) }
println "${slide}: ${found*.getName()}"
